"""The plan of a stage: everything that decides its result, beside the tables and models that it reads.

`data/plan/<round>/<stage>.json` holds one. DVC runs a stage again when its plan or one of its inputs is another; equal
content is not stale. `tasks/project/plan.py` makes plans from params.yaml, recipes and the code.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tasks.core.errors import StoreError
from tasks.core.models import file_digest

FOLDER = Path("data/plan")
SOURCES = FOLDER / "sources.json"
"""sha256 of the files that the plans were made from: params.yaml and the recipes."""
TRANSPORT = FOLDER / "transport.json"
"""How engines reach their models, which decides no answer and is in no plan."""


class Plan(BaseModel):
    """What one stage of a base or round does. What the stage does not use is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: str
    stage: str
    seed: int | None = None
    ancestors: dict[str, str] = {}
    """The base or round by what it is to this one: parent, base, anchor, grandparent."""
    reads: list[str] = []
    """What not every such stage reads and this one does, by argument: optional tables, and models of ancestors."""
    domain: dict[str, Any] | None = None
    """`strategy` and every parameter of it, as all that follows."""
    engine: dict[str, Any] | None = None
    members: dict[str, dict[str, Any]] = {}
    options: dict[str, Any] = {}
    judges: dict[str, dict[str, Any]] = {}
    """Those of the round, where the stage is about them."""
    models: dict[str, dict[str, Any]] = {}
    """Those of the roster that it opens: engine, folder, digest."""
    code: dict[str, str] = {}
    """sha256 of every first-party module that its strategies, domain and engines import, directly or not."""
    files: dict[str, str] = {}
    """sha256 of every file that they read."""
    tables: dict[str, str] = {}
    """Digest of the definition of every table that it writes."""

    @property
    def text(self) -> str:
        """The plan as its file has it."""
        values = {k: v for k, v in self.model_dump(mode="json").items() if v not in (None, {}, [])}
        return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        """sha256 of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def values(self) -> dict[str, Any]:
        """Its parameters as params.yaml and recipes have them: members and options of the stage, domain, engine, seed."""
        shared = {"seed": self.seed, "domain": self.domain, "engine": self.engine}
        return {k: v for k, v in shared.items() if v is not None} | {self.stage: self.members | self.options}

    @classmethod
    def read(cls, root: Path, name: str, stage: str) -> Self:
        """The plan of a stage of a base or round.

        Raises:
            StoreError: when there is none, or when the file is none.
        """
        path = root / FOLDER / name / f"{stage}.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise StoreError(f"{path}: there is no plan of {stage}@{name}; `flywheel plan` makes it") from error
        except ValidationError as error:
            raise StoreError(f"{path}: is not a valid plan; `flywheel plan` makes it again") from error


def read_transport(root: Path) -> dict[str, dict[str, Any]]:
    """How engines reach their models, by base, round or `models.NAME` of the roster.

    Raises:
        StoreError: when the file is damaged.
    """
    path = root / TRANSPORT
    try:
        return TypeAdapter(dict[str, dict[str, Any]]).validate_json(path.read_bytes()) if path.is_file() else {}
    except ValidationError as error:
        raise StoreError(f"{path}: is not what was written; `flywheel plan` makes it again") from error


def edited_sources(root: Path) -> list[str]:
    """The files from which the plans were made and that were edited since: params.yaml and recipes.

    Raises:
        StoreError: when the file that names them is damaged.
    """
    path = root / SOURCES
    try:
        digests = TypeAdapter(dict[str, str]).validate_json(path.read_bytes()) if path.is_file() else {}
    except ValidationError as error:
        raise StoreError(f"{path}: is not what was written; `flywheel plan` makes it again") from error
    return [f for f, digest in digests.items() if not (root / f).is_file() or file_digest(root / f) != digest]
