"""Kahneman–Tversky optimization on single labels, by TRL's KTOTrainer with Muon on the matrices."""

from typing import TYPE_CHECKING, Any, ClassVar, Self

import polars as pl
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tasks.core.errors import ParamsError
from tasks.train import CURVE, FineTuning, TrainCase
from tasks.train._labels import check_labels
from tasks.train._reference import reference_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.training.loop import Schedule
    from tasks.training.unpaired import LabelTrainer


class KTO(FineTuning):
    """Raises the likelihood of answers labelled right, and lowers that of wrong ones, without pairs: KTO (Ethayarajh et al. 2024,
    arXiv:2402.01306) on rows with a label, such as `collect.labelled` gives. With r = log π(y)/π_ref(y), the loss of a right
    answer is λ_D [1 − σ(β(r − z))], of a wrong one λ_U [1 − σ(β(z − r))], and that of a step Σ w loss / rows, w the row's weight:
    a row of weight 2 counts twice. z = max(0, mean of log π/π_ref of the answers, each after another row's prompt) is taken
    without a gradient and without weights from the rows that are at once, so a small `micro_batch` makes it noisy.

    Rows with a mask are refused: TRL computes the reference's log-probabilities of whole answers, and also of each answer
    after another prompt, when its trainer is made, before anything could take tokens out of them.
    """

    has_reference: ClassVar[bool] = True
    used_columns: ClassVar[frozenset[str]] = frozenset({"training.weight", "training.label", "training.tag"})

    epochs: PositiveInt = 1
    """Passes over the rows."""
    muon_lr: PositiveFloat | None = 0.0005
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors); null trains them by AdamW, too."""
    adamw_lr: PositiveFloat = 0.00005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    beta: PositiveFloat = 0.1
    """How strongly it holds to the reference."""
    desirable_weight: NonNegativeFloat = 1.0
    """λ_D, weight of right answers. The paper wants λ_D · right / (λ_U · wrong) between 1 and 4/3."""
    undesirable_weight: NonNegativeFloat = 1.0
    """λ_U, weight of wrong answers."""

    @model_validator(mode="after")
    def _check_pieces(self) -> Self:
        if self.batch < 2 or self.micro_batch == 1:
            raise ValueError(
                "kto compares each row with another one of the same piece: batch and micro_batch must be 2 or more"
            )
        return self

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the trained model and gives the curve. Raises Diverged, ModelRefused as `weights.load` and for a reference
        that reads other tokens, and ParamsError for a row without a label, and for a single row.
        """
        from tasks.training.loop import fit
        from tasks.training.weights import save

        check_labels(self.strategy_name(), case.training, "label")
        policy, tokenizer = self.load(case)
        reference = reference_model(case, tokenizer)
        trainer = self.label_trainer(policy, reference, tokenizer, case)
        if "ref" in getattr(policy, "peft_config", {}):
            policy.delete_adapter("ref")  # its log-probabilities are computed already
        trainer.ref_model = None
        curve = fit(trainer, "kto")
        save(trainer.model, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)

    def label_trainer(
        self,
        policy: "PreTrainedModel",
        reference: "PreTrainedModel | None",
        tokenizer: "PreTrainedTokenizerBase",
        case: TrainCase,
    ) -> "LabelTrainer":
        """A trainer whose rows lie in the order of its steps already: TRL pairs each with the one before it when it is made."""
        from trl import KTOConfig

        from tasks.training.loop import in_order, on_one_device
        from tasks.training.rows import FOLDER, lengths
        from tasks.training.tokens import label_tokens
        from tasks.training.unpaired import IDS, LabelTrainer
        from tasks.training.weighted import dataset

        schedule = self.schedule_of(len(case.training), self.steps, case.seed)
        place = case.work / "kto" / FOLDER
        rows = dataset(case.training, place, tokenizer, "label", tokens=label_tokens, ids=IDS)
        sizes = [prompt + completion for prompt, completion in zip(*(lengths(rows, key) for key in IDS), strict=True)]
        return LabelTrainer(
            policy,
            reference,
            on_one_device(KTOConfig(**self._settings(case, schedule))),
            train_dataset=rows.select(in_order(sizes, schedule.batch, schedule.epochs, schedule.seed)),
            processing_class=tokenizer,
            optimizers=self.optimizers_of(policy, schedule, self.steps),
        )

    def _settings(self, case: TrainCase, schedule: "Schedule") -> dict[str, Any]:
        if schedule.at_once < 2:
            raise ParamsError(
                f"train: kto compares each row with another one of the same piece, but of {len(case.training)} rows in steps of "
                f"{schedule.step} only 1 would be at once; leave train.kto.micro_batch out, or collect more rows"
            )
        return self.settings_of(case.work / "kto", schedule, self.steps) | {
            "beta": self.beta,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
            "precompute_ref_log_probs": True,
        }
