"""Base: the model that rounds start from."""

import json
from dataclasses import dataclass
from pathlib import Path

from tasks.core.models import POINTER, pointer
from tasks.core.stage import Result, Strategy, stage
from tasks.domains import Domain


@dataclass(frozen=True)
class BaseCase:
    """Where a base model is brought to."""

    model: Path
    """Folder to write: a model, or a pointer to one that lies elsewhere, with the sha256 of each of its files."""
    work: Path
    """Scratch folder that survives a kill, for checkpoints."""
    seed: int
    domain: Domain


class Origin(Strategy):
    """Where a base model comes from."""

    def __call__(self, case: BaseCase) -> None:
        """Writes `case.model`."""
        raise NotImplementedError


@stage(folders=["model"], bases="only")
def base(strategy: Origin, model: Path, work: Path, seed: int, domain: Domain) -> Result:
    """Brings a base model into place."""
    strategy(BaseCase(model, work, seed, domain))
    return Result({})


def write_pointer(model: Path, place: Path, source: dict[str, str] | None = None) -> str:
    """Makes `model` a pointer to the model in `place`, and gives the digest of what it points to. `source` says how
    another machine finds it, where that is not by its path.

    Raises:
        ModelRefused: when that model is incomplete, not in safetensors, or wants to run code of its own.
    """
    content = pointer(place, source)
    model.mkdir(parents=True, exist_ok=True)
    (model / POINTER).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return str(content["digest"])
