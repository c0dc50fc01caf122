"""Base: the model that rounds start from.

A strategy is called as `params(model=…, work=…, seed=…, domain=…)` and writes the folder `model`: a model, or a pointer
to one that lies elsewhere, with the sha256 of each of its files. `work` survives a kill, for checkpoints.
"""

import json
from pathlib import Path

from tasks.domains import Domain
from tasks.stage import Result, Strategy, stage


@stage(folders=["model"], bases="only")
def base(params: Strategy, model: Path, work: Path, seed: int, domain: Domain) -> Result:
    """Brings a base model into place."""
    params(model=model, work=work, seed=seed, domain=domain)
    return Result({})


def write_pointer(model: Path, place: Path, source: dict[str, str] | None = None) -> str:
    """Makes `model` a pointer to the model in `place`, and gives the digest of what it points to. `source` says how
    another machine finds it, where that is not by its path.

    Raises:
        ModelRefused: when that model is incomplete, not in safetensors, or wants to run code of its own.
    """
    from tasks.models import POINTER, pointer

    told = pointer(place, source)
    model.mkdir(parents=True, exist_ok=True)
    (model / POINTER).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return str(told["digest"])
