"""Several processes that train one model, each on a device of its own: ranks, as torch.distributed calls them. A process that
is alone is rank 0 of 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
import torch.distributed as dist  # noqa: TID253

TIMEOUT = timedelta(days=1)
"""How long ranks wait for one that works alone, such as the first while it makes tokens. A dead one is seen at once."""


def join() -> None:
    """Joins the other ranks, of whom the environment tells (`RANK`, `WORLD_SIZE` …); by NCCL where there are GPUs, else gloo."""
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if _joined() else 1


def is_first() -> bool:
    """Whether this is rank 0, which alone writes what all of them read."""
    return not _joined() or dist.get_rank() == 0


def wait() -> None:
    """Waits for all of them."""
    if _joined():
        dist.barrier()


@contextmanager
def first_then_others() -> Iterator[None]:
    """The block is run by rank 0, and then by the others, which find what that wrote."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def totals(values: Sequence[int], device: torch.device) -> list[int]:
    """The sum over ranks of each of these."""
    if count() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(sums)
    return [int(value) for value in sums]


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
