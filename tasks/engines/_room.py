"""Whether a model's weights fit into the memory that is free, known from their headers before anything is loaded."""

import json
from pathlib import Path

from tasks.core import models
from tasks.core.errors import EngineError

GIB = 2**30
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the numbers that are converted when a model is loaded, by their names in safetensors."""


def check_room(folder: Path, dtype: str, device: str, free: int) -> None:
    """Raises EngineError when a model's weights alone, loaded as `dtype`, take more than the `free` bytes of a device. They
    may need more than that, so what passes can still fail; `auto` counts as 16 bits, to which it may narrow 32.
    """
    base, _ = models.layout(folder)
    need = sum(_weights(base / name, 4 if dtype == "float32" else 2) for name in models.shards(base))
    if need > free:
        raise EngineError(
            f"{base}: the weights take {need / GIB:.1f} GiB, and {free / GIB:.1f} GiB of {device} memory are free (see "
            "`flywheel doctor`); end what else holds some, take a smaller model, or have a server answer (engine openai)"
        )


def _weights(path: Path, width: int) -> int:
    """Bytes of a safetensors file's tensors with floats `width` bytes wide; quantized ones stay as they are."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kinds = [(t["dtype"], t["data_offsets"]) for name, t in header.items() if name != "__metadata__"]
    return sum((end - start) * width // FLOATS.get(kind, width) for kind, (start, end) in kinds)
