"""A model in a local folder."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tasks.base import BaseCase, Origin, write_pointer
from tasks.core.errors import ModelRefused


class Local(Origin):
    """Starts from a model folder on this machine. It is pointed to, not copied."""

    example: ClassVar[dict[str, Any]] = {"path": "data/base"}

    path: Path
    """The folder; relative to the project where it lies inside it."""
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """The digest that the model must have; null accepts any."""

    def __call__(self, case: BaseCase) -> None:
        """Writes the pointer.

        Raises:
            ModelRefused: when the folder is missing, incomplete or unsafe, or has another digest than the pinned one.
        """
        digest = write_pointer(case.model, self.path)
        if self.digest and digest != self.digest:
            raise ModelRefused(
                f"{self.path}: the model's digest is {digest}, but params.yaml pins {self.digest}: other weights, "
                "tokenizer or config than were meant; restore the folder, or write the new digest if the change is intended"
            )
