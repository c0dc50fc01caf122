"""The trunk of a schedule that goes on across rounds: the weights before the decay, kept beside the decayed model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core import models
from tasks.training import ranks
from tasks.training.weights import load, save

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

FOLDER = "trunk"
"""Folder in a model's folder. What lies in folders there is no part of the model, nor of its digest."""


def trunk_of(model: Path) -> Path:
    """The folder of a model's trunk; the model's own where it has none, as a base's."""
    trunk = models.resolve(model) / FOLDER
    return trunk if trunk.is_dir() else model


def keeper(policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", work: Path, step: int) -> "TrainerCallback":
    """Saves the policy to `work` after so many steps; at 0 before the first."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._keep(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._keep(state.global_step)

        def _keep(self, now: int) -> None:
            if now == step and ranks.is_first():
                policy.save_pretrained(work / FOLDER)
                tokenizer.save_pretrained(work / FOLDER)

    return Keeper()


def keep(work: Path, tokenizer: "PreTrainedTokenizerBase", start: Path, model: Path) -> None:
    """Puts the trunk that a keeper saved beside the model, in the start's precision."""
    save(load(work / FOLDER)[0], tokenizer, start, model / FOLDER, blend=1.0)
