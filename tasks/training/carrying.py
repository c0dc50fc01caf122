"""Columns of a row that its loss needs, carried to it past TRL's collators."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)


class Carrying:
    """Before one of TRL's trainers in a class's bases: batches have the columns `carried` of their rows, too. TRL's losses
    would give what they do not know to the model, so a subclass takes them out first.
    """

    carried: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = with_columns(self.data_collator, self.carried)

    def _send_telemetry(self) -> None:
        """TRL would tell its makers of each training."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns = sorted({*self._signature_columns, *self.carried})

    def create_accelerator_and_postprocess(self) -> None:
        """Shards on CPUs, too: accelerate does so on GPUs alone, of which it takes the ranks to have one each. And leaves the
        process's variables alone.
        """
        from accelerate import PartialState
        from accelerate.utils import DistributedType, environment

        environment.clear_environment = no_variables

        if self.args.fsdp and self.args.use_cpu:  # type: ignore[attr-defined]
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()  # type: ignore[misc]

    def split(self, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A batch as TRL knows it, and the carried columns."""
        return (
            {n: v for n, v in batch.items() if n not in self.carried},
            {n: v for n, v in batch.items() if n in self.carried},
        )


@contextmanager
def no_variables() -> Iterator[None]:
    """An empty `os.environ`. accelerate, to learn its defaults, takes all variables of the process away and sets them again: where
    a thread of polars reads one meanwhile, glibc before 2.41 reads freed memory, and the process dies.
    """
    before = os.environ
    os.environ = {}  # type: ignore[assignment]  # noqa: B003  (the process's own are left)
    try:
        yield
    finally:
        os.environ = before  # noqa: B003


def recorded(model: Any) -> tuple[Callable[..., Any], list[Any]]:
    """A model that keeps what it gives, and the list of what it gave: for losses that need more of it than TRL's own."""
    outputs: list[Any] = []

    def called(**inputs: Any) -> Any:
        outputs.append(model(**inputs))
        return outputs[-1]

    return called, outputs


def with_columns(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]], names: tuple[str, ...]
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """A collator whose batches also have these columns; lists are filled up with zeros at the end."""

    def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return collate(rows) | {name: _tensor([row[name] for row in rows]) for name in names}

    return collated


def _tensor(values: list[Any]) -> torch.Tensor:
    if not isinstance(values[0], list):
        return torch.tensor(values)
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(v) for v in values], batch_first=True)
