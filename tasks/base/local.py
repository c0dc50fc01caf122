"""A model in a local folder."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tasks.base import write_pointer
from tasks.domains import Domain
from tasks.errors import ModelRefused
from tasks.stage import Strategy


class Local(Strategy):
    """Starts from a model folder on this machine. It is pointed to, not copied."""

    example: ClassVar[dict[str, Any]] = {"path": "data/base"}

    path: Path
    """The folder; relative to the project where it lies inside it."""
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """The digest that the model must have; null takes it as it is found."""

    def __call__(self, model: Path, work: Path, seed: int, domain: Domain) -> None:
        """Writes the pointer.

        Raises:
            ModelRefused: when the folder is missing, incomplete or unsafe, or has another digest than the pinned one.
        """
        found = write_pointer(model, self.path)
        if self.digest and found != self.digest:
            raise ModelRefused(
                f"{self.path}: the model's digest is {found}, but params.yaml pins {self.digest}: other weights, "
                "tokenizer or config than were meant; restore the folder, or write the new digest if it is wanted"
            )
