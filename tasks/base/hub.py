"""A model of the Hugging Face hub, at one revision."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tasks.base import BaseCase, Origin, write_pointer
from tasks.core.errors import FlywheelError
from tasks.core.models import SNAPSHOT


class Hub(Origin):
    """Starts from a model of the hub. Its safetensors, configs and tokenizer go to the hub's cache on this machine
    (`HF_HOME`), once, and are pointed to by repository and revision; pickled weights and code are not downloaded.
    """

    example: ClassVar[dict[str, Any]] = {"repo": "someone/some-model", "revision": "0" * 40}

    repo: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")
    """Owner and name, as `Qwen/Qwen3-0.6B`."""
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    """The commit, in full: a branch or tag may move, and the origin of a round would be lost."""

    def __call__(self, case: BaseCase) -> None:
        """Downloads what is not there yet, and writes the pointer.

        Raises:
            FlywheelError: when it cannot be downloaded, with the hub's message.
            ModelRefused: when it is incomplete, not in safetensors, or wants to run code of its own.
        """
        write_pointer(case.model, self._download(), {"repo": self.repo, "revision": self.revision})

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.repo, revision=self.revision, **SNAPSHOT))
        except Exception as error:  # the hub's client has a dozen kinds without a common base
            reason = next(iter(str(error).strip().splitlines()), "")
            raise FlywheelError(
                f"base hub: {self.repo} at {self.revision} cannot be downloaded ({type(error).__name__}: {reason}); check "
                "the name, the revision and the network, log in with `hf auth login` for a gated model, or download "
                "it elsewhere and use base strategy local"
            ) from error
