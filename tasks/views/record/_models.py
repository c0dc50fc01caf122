"""Models: a logged model for each model that a round made, with its metrics; a version of the registered model; the champion.

A version's source is `dvc:///data/round=r2/model?digest=…&md5=…`: the weights by digest, wherever the project lies. They are
never copied to MLflow; `tasks/views/dvc_artifacts.py` finds them, with all that `mlflow.transformers.load_model` needs.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from tasks.core import store
from tasks.core.champion import Election
from tasks.project import champion
from tasks.project.champion import decision, model_digest
from tasks.project.params import Block, Pipeline, stages_of
from tasks.views._dvc_addresses import address, outputs
from tasks.views.record._facts import MODELS_PARAMS, Manifests
from tasks.views.report import outcome

ALIAS = "champion"
KIND = "language model"


class Models:
    """The registered model of a campaign and the logged models of its experiment; both are read once, or, where not `whole`, of
    each round that is asked for.
    """

    def __init__(
        self, root: Path, pipeline: Pipeline, client: Any, experiment: str, new: Counter[str], whole: bool = True
    ) -> None:
        self.root, self.pipeline, self.name = root, pipeline, pipeline.campaign.name
        self.client, self.experiment, self.new = client, experiment, new
        self.whole = whole
        self.logged = self._search_logged("") if whole else []
        if not client.search_registered_models(f"name = '{self.name}'"):
            client.create_registered_model(self.name, description="The model after each round of the campaign.")
        self.versions = self._search_versions("") if whole else []
        self.current: dict[str, str] = {}
        """The version of each base's or round's present model."""
        self._read: set[str] = set()

    def _search_logged(self, query: str) -> list[Any]:
        return pages(lambda token: self.client.search_logged_models([self.experiment], query or None, page_token=token))

    def _search_versions(self, query: str) -> list[Any]:
        own = f"name = '{self.name}'{query}"
        return pages(lambda token: self.client.search_model_versions(own, page_token=token))

    def _read_round(self, name: str) -> None:
        """Reads what MLflow has of a base's or round's models, unless everything was read."""
        if not self.whole and name not in self._read:
            self._read.add(name)
            self.logged += self._search_logged(f"tags.round = '{name}'")
            self.versions += self._search_versions(f" and tags.round = '{name}'")

    def log(self, block: Block, run: Any, manifests: Manifests) -> str | None:
        """Id of the logged model of a round, one for each digest; None before the round has a model."""
        digest = model_digest(self.root, block.name, manifests)
        if digest is None:
            return None
        self._read_round(block.name)
        key = {"round": block.name, "digest": digest}
        logged = next((m for m in self.logged if {k: m.tags.get(k) for k in key} == key), None)
        if logged is None:
            params = {k: getattr(block, k) or "" for k in MODELS_PARAMS}
            logged = self.client.create_logged_model(
                self.experiment, block.name, run.info.run_id, key, {k: v for k, v in params.items() if v}, KIND
            )
            self.client.finalize_logged_model(logged.model_id, "READY")
            self.logged.append(logged)
        return str(logged.model_id)

    def register(self, block: Block, run: Any, manifests: Manifests, model_id: str) -> str:
        """Registers a version that refers to the round's model, one per digest, and returns it; the round's other versions are
        superseded.
        """
        digest = str(model_digest(self.root, block.name, manifests))
        text = describe(self.root, self.pipeline, block)
        version = self._version(block.name, digest)
        if version is None:
            tags = {"round": block.name, "digest": digest}
            source = _source(self.root, block.name, digest)
            version = self.client.create_model_version(
                self.name, source, run.info.run_id, tags, description=text, await_creation_for=0, model_id=model_id
            )
            known = json.dumps([{"name": self.name, "version": version.version}])
            self.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": known})
            self.versions.append(version)
            self.new["versions"] += 1
        elif version.description != text:
            self.client.update_model_version(self.name, version.version, text)
        self.current[block.name] = str(version.version)
        for other in self.versions:
            self._mark_version(other, block.name, str(version.version))
        return str(version.version)

    def _mark_version(self, other: Any, name: str, current: str) -> None:
        if other.tags.get("round") != name:
            return
        mark = other.tags.get("superseded_by")
        if str(other.version) != current and mark != current:
            self.client.set_model_version_tag(self.name, other.version, "superseded_by", current)
        if str(other.version) == current and mark:
            self.client.delete_model_version_tag(self.name, other.version, "superseded_by")

    def _version(self, name: str, digest: str) -> Any | None:
        """The version of a round's model. One with an older kind of source cannot be downloaded and counts as another one."""
        self._read_round(name)
        key = (name, digest)
        return next(
            (
                v
                for v in self.versions
                if (v.tags.get("round"), v.tags.get("digest")) == key and v.source.startswith("dvc:")
            ),
            None,
        )

    def move_alias(self, results: dict[str, Election], absent: dict[str, list[str]]) -> str:
        """Moves the alias to the model in force; returns a sentence that names the model and the decision. Without a
        person's decision it stays while the store is incomplete.
        """
        aliases = self.client.get_registered_model(self.name).aliases
        before = str(aliases.get(ALIAS, ""))
        was = str(self.client.get_model_version(self.name, before).tags.get("round", "")) if before else ""
        choice = decision(self.root)
        if not choice and (lacking := [t for texts in absent.values() for t in texts] or self._lost(was)):
            more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
            return (
                f"{ALIAS} stays as it is, for the store is incomplete: missing {lacking[0]}{more}. `dvc checkout --force` or "
                "`dvc pull` restores results, `flywheel run ROUND` makes them again"
            )
        name = choice.round if choice else champion.first_champion(results)
        if name is None:
            return "no model to promote yet"
        promoted = self._version(name, choice.digest) if choice else None
        now = str(promoted.version) if promoted else "" if choice else self.current.get(name, "")
        if not now:
            return (
                f"{ALIAS} stays as it is: {name} no longer has the promoted model; run `flywheel promote ROUND` again"
            )
        if before != now:
            self.client.set_registered_model_alias(self.name, ALIAS, now)
        by = f"by {choice.by}'s decision" if choice else "by the gates' decision"
        moved = f" (it was {was}, version {before})" if before not in ("", now) else ""
        return f"{ALIAS} is {name}, version {now}{moved}, {by}"

    def _lost(self, name: str) -> list[str]:
        """Manifests that a champion of params.yaml must have and that are not there."""
        if name not in self.pipeline.blocks:
            return []
        stages = {s.name for s in stages_of(self.pipeline.block(name))} & {"base", "train", "evaluate", "gate"}
        return [f"the results of {s}@{name}" for s in sorted(stages - set(store.manifests(self.root, name)))]


def describe(root: Path, pipeline: Pipeline, block: Block) -> str:
    """What a version of the registered model says of itself: its parent, accuracy, decision, and what is worse than before."""
    origin = f"{block.name} from {block.parent} by {block.recipe}" if block.parent else f"{block.name}, a base"
    return ". ".join([origin, *outcome(root, pipeline, block)]) + "."


def _source(root: Path, name: str, digest: str) -> str:
    """Address of a round's model, with DVC's md5 of the folder where dvc.lock describes this very result."""
    folder = store.round_folder(root, name).relative_to(root)
    stage = next(s for s, m in store.manifests(root, name).items() if "model" in m.outputs)
    manifest = folder / "manifests" / f"{stage}.json"
    locked = outputs(LocalFileSystem(), str(manifest), str(root.resolve()))
    same = locked.get(str(manifest)) == hashlib.md5((root / manifest).read_bytes(), usedforsecurity=False).hexdigest()
    return address(str(folder / "model"), digest=digest, md5=locked.get(str(folder / "model")) if same else None)


def pages(search: Callable[[str | None], Any]) -> list[Any]:
    """All results of a search that is answered in pages."""
    results, token = [], None
    while True:
        page = search(token)
        results += page
        token = page.token
        if not token:
            return results
