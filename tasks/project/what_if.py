"""What-if rounds: a round once more under another name, with a change. Parent, recipe, anchor, seed and all other settings
are the same, so what differs between the two is the change's doing.

The new round is one of params.yaml as any other: where its gates promote it, its test against the champion is a look at the
validation set. A stage whose plan and inputs are equal to the old round's sends equal
requests, which the request cache answers.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.core.stage import stages
from tasks.project import graph, plan, recipes
from tasks.project.edit import assignments, edit
from tasks.project.params import FILE, Pipeline, load_params, plain, read, stages_of, validate

OWN = ("seed", "recipe", "anchor")
"""Keys of a round that can be set beside the settings of its recipe."""
REFUSED = {
    "parent": "the new round has the old one's; `flywheel round add` starts one from another parent",
    "base": "it follows from the parent",
}


@dataclass(frozen=True)
class WhatIf:
    """A round that was added to ask what a change does."""

    old: str
    new: str
    settings: tuple[str, ...]
    changed: tuple[str, ...]
    """Stages whose plans differ from the old round's."""

    @property
    def equal(self) -> list[str]:
        """The stages before the first changed one, which send the same requests again."""
        order = list(stages())
        return [s for s in order[: order.index(self.changed[0])] if stages()[s].bases != "only"]


def add(root: Path, old: str, settings: list[str], new: str | None = None) -> WhatIf:
    """Appends the round `new` (default: the old one's name with an x) to params.yaml.

    Raises:
        FlywheelError: when there is no change, when the old round is no round, is not up to date, or has this value already,
            and when the new name is taken.
        ParamsError: when the change is not valid; nothing is written then.
    """
    changes = assignments(settings, REFUSED)
    if not changes:
        raise FlywheelError("name a change, as in --set filter.threshold.min_reward=0.3")
    if load_params(root).block(old).is_base:
        raise FlywheelError(f"{old} is a base, which no recipe makes; name a round")
    content = read(root)
    new = new or _free(old, {*content["bases"], *content["rounds"]})

    def change(content: CommentedMap) -> None:
        if new in content["bases"] or new in content["rounds"]:
            raise FlywheelError(f"{FILE} has a {new!r} already; choose another with --name")
        content["rounds"][new] = _changed(content["rounds"][old], changes)

    change(content)
    params = validate(plain(content), root)
    _check_current(root, old)
    changed = changed_stages(root, params, old, new)
    if not changed:
        raise FlywheelError(f"{old} with {', '.join(settings)} is {old}: none of its stages would do anything else")
    edit(root, change)
    return WhatIf(old, new, tuple(settings), changed)


def _check_current(root: Path, old: str) -> None:
    if stale := graph.stale(root, old):
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise FlywheelError(
            f"{old} is not up to date ({stale[0]}{more} would run), so what differs from it would not be the change's doing; "
            f"`flywheel run {old}` first"
        )


def _free(old: str, taken: set[str]) -> str:
    names = (f"{old}x{n if n > 1 else ''}" for n in count(1))
    return next(name for name in names if name not in taken)


def _changed(block: CommentedMap, changes: Mapping[str, Any]) -> CommentedMap:
    """A round's block with changes, on one line as the others."""
    copy, inner = deepcopy(block), {k: _quoted(v) for k, v in changes.items() if k not in OWN}
    copy.update({k: v for k, v in changes.items() if k in OWN})
    if inner:
        copy["set"] = CommentedMap(recipes.merged(copy.get("set") or {}, inner, stages()))
        copy["set"].fa.set_flow_style()
    return copy


def _quoted(value: Any) -> Any:
    """Text with a colon is quoted: in flow style libyaml takes it for a key's."""
    return SingleQuotedScalarString(value) if isinstance(value, str) and ":" in value else value


def changed_stages(root: Path, params: Pipeline, old: str, new: str) -> tuple[str, ...]:
    """The stages whose plans differ by more than the round's name."""
    pairs = [
        (s.name, *(plan.plan(root, params, params.block(n), s) for n in (old, new)))
        for s in stages_of(params.block(old))
    ]
    return tuple(name for name, one, other in pairs if one != other.model_copy(update={"round": old}))


def reused(root: Path, what: WhatIf) -> dict[str, tuple[float, float]]:
    """The stages of the new round whose outputs are the old round's, byte for byte, with the seconds of both, process start-up
    left out.
    """
    then, now = (store.manifests(root, name) for name in (what.old, what.new))
    equal = [s for s in stages() if s in then and s in now and _digests(then[s]) == _digests(now[s])]
    return {s: (_seconds(then[s]), _seconds(now[s])) for s in equal}


def _digests(manifest: store.Manifest) -> dict[str, str]:
    return {name: output.digest for name, output in manifest.outputs.items()}


def _seconds(manifest: store.Manifest) -> float:
    return sum(manifest.seconds.values()) - manifest.seconds.get("start", 0.0)
