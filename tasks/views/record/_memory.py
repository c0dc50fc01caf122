"""Which results are in MLflow, remembered, so that a record reads and asks MLflow about new results alone.

    .flywheel/recorded.json     for each base and round a digest of all that its record was made from; may be deleted at any time

The memory counts as long as the experiment has its mark, a tag that every record of something new changes: another experiment,
an older copy of the database, and one to which another clone has recorded since, have another.
"""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.core import store
from tasks.project.params import Block, Pipeline

FILE = Path(".flywheel/recorded.json")
MARK = "flywheel.recorded"
"""Tag of the experiment."""


class Recorded(BaseModel):
    """What is in MLflow of a base or round."""

    state: str
    """Digest of what its record was made from."""
    run: str
    version: str | None = None
    """Of the registered model."""


class Memory(BaseModel):
    """What was recorded in one experiment."""

    mark: str = ""
    code: str = ""
    """Digest of the code that records."""
    rounds: dict[str, Recorded] = {}

    @classmethod
    def read(cls, root: Path, tags: Mapping[str, str]) -> "Memory":
        """The memory of an experiment with these tags; an empty one where there is none of it, or of another code."""
        with suppress(OSError, ValidationError):
            memory = cls.model_validate_json((root / FILE).read_bytes())
            if memory.mark and memory.mark == tags.get(MARK) and memory.code == _code():
                return memory
        return cls(code=_code())

    def renew(self, root: Path, client: Any, experiment: str, rounds: dict[str, Recorded]) -> None:
        """Remembers these rounds, under another mark; nothing where they are those that it has."""
        if rounds == self.rounds:
            return
        self.mark, self.rounds = secrets.token_hex(16), rounds
        client.set_experiment_tag(experiment, MARK, self.mark)
        with suppress(OSError):  # a full or read-only disk: the next record looks at everything
            path = root / FILE
            path.parent.mkdir(exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}.new")
            new.write_text(self.model_dump_json())
            new.replace(path)


def state(root: Path, pipeline: Pipeline, block: Block, manifests: Mapping[str, store.Manifest], number: int) -> str:
    """Digest of all from which the record of a base or round is made: its manifests, those of its parent, and what
    params.yaml says of it.
    """
    own = {stage: _digest(root, block.name, stage) for stage in manifests}
    parent = (
        {stage: _digest(root, block.parent, stage) for stage in store.manifests(root, block.parent)}
        if block.parent
        else {}
    )
    said = [block.parent, block.base, block.recipe, block.anchor, number, block.values.get("judge")]
    prices = pipeline.prices.model_dump(mode="json") if pipeline.prices else None
    return store.digest([("state", json.dumps([own, parent, said, prices], sort_keys=True, default=str))])


def _digest(root: Path, name: str, stage: str) -> str:
    return store.sha256(store.round_folder(root, name) / "manifests" / f"{stage}.json")


def _code() -> str:
    return store.digest((path.name, store.sha256(path)) for path in Path(__file__).parent.glob("*.py"))
