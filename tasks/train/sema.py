"""Supervised fine-tuning of an adapter on those layers alone where the data drifted."""

from collections.abc import Iterator
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self

import polars as pl
from pydantic import NonNegativeFloat, model_validator

from tasks.train import CURVE, TrainCase
from tasks.train.sft import SFT
from tasks.training.lora import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SEMA(SFT):
    """Supervised fine-tuning of an adapter on those layers alone whose hidden states of new rows are far from those of old
    rows: SEMA, self-expansion of a model with adapters (Wang et al. 2024, arXiv:2403.18886). The other layers stay as they
    are. The distance in a layer is |mean of new − mean of old| / √(mean |old − mean of old|²), over rows, of which each is the
    mean of the layer's outputs over its tokens (of the last layer, after the final norm).

    Our reading of the abstract: old rows are the replayed ones (`collect.replay`), which the parent was trained on. The
    paper learns a descriptor of each adapter's data in the place of this distance. Adapters are LoRA and are merged, in the
    place of a mixture that grows. Without old rows every layer counts as far; where none is far, the model is the start's,
    unchanged.
    """

    on_several_devices: ClassVar[bool] = False
    can_be_sharded: ClassVar[bool] = False

    threshold: NonNegativeFloat = 0.5
    """Distance from which a layer has drifted: that of the means, in root mean square distances of an old row from theirs."""
    adapter: Lora = Lora()
    """The adapter of each layer that drifted; merged when the training ends."""

    @model_validator(mode="after")
    def _check_merge(self) -> Self:
        if not self.adapter.merge:
            raise ValueError(
                "adapter.merge is false, but sema adapts some layers only, and no round could go on from that; set it to true"
            )
        return self

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the fine-tuned model and gives the curve; in its phase `drift` a step is a layer, with its distance.
        Raises Diverged, and ModelRefused as `weights.load`.
        """
        from tasks.training.weights import load, peft, save

        policy, tokenizer = load(case.start)
        drift = self.drift(policy, tokenizer, case.training)
        layers = [layer for layer, distance in enumerate(drift) if distance > self.threshold]
        known = [(layer, round(distance, 6)) for layer, distance in enumerate(drift) if isfinite(distance)]
        curve = [{"step": layer, "phase": "drift", "name": "distance", "value": value} for layer, value in known]
        if layers:
            policy = peft(policy, self.adapter, case.seed, layers)
            policy, more = self.supervised(policy, tokenizer, case.training, case.work / "sft", case.seed)
            curve += more
        save(policy, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)

    def drift(self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: pl.DataFrame) -> list[float]:
        """The distance of new and old rows in each layer; infinite where there is no old row, 0 where there is no new one."""
        from tasks.training.drift import distances, hidden_means, spread

        old = pl.col("source").eq_missing(pl.lit("replay"))
        new, seen = (rows.filter(which) for which in (~old, old))
        if new.is_empty() or seen.is_empty():
            return [0.0 if new.is_empty() else inf] * policy.config.num_hidden_layers
        return distances(*(spread(hidden_means(policy, tokenizer, _chats(some))) for some in (new, seen)))


def _chats(rows: pl.DataFrame) -> Iterator[Any]:
    return (prompt + completion for prompt, completion in rows.select("prompt", "completion").iter_rows())
