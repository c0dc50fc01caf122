"""Self-exploring preference optimization: DPO that is optimistic about what the reference would not say."""

from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveInt

from tasks.train.dpo import DPO

if TYPE_CHECKING:
    from tasks.training.preferring import PairTrainer


class SELM(DPO):
    """SELM (Zhang et al. 2024, arXiv:2405.19332): DPO with an exploration term. The loss of a pair is
    −log σ(βΔ) + αβ [log π(y') − log π_ref(y')], y' the reference's own greedy answer to the prompt. That takes probability
    from what the reference says anyway, and so leaves more for what the pairs prefer. The term has this sign, and y' is
    greedy, in the authors' code (shenao-zhang/SELM); there y' may also become the chosen or the rejected answer, which
    here is left to `pair`. y' is written once, before the first step. Smoothing, weights and reference as in `dpo`.
    """

    alpha: NonNegativeFloat = 0.001
    """Weight α of the exploration term."""
    max_tokens: PositiveInt = 256
    """Longest answer of the reference, in tokens."""

    def pair_trainer(self) -> tuple[type["PairTrainer"], dict[str, Any]]:
        """The kind of trainer, and its further settings."""
        from tasks.training.exploring import ExploringTrainer

        return ExploringTrainer, {"alpha": self.alpha}

    def prepare(self, trainer: Any) -> None:
        """Has the reference answer each prompt."""
        trainer.explore(self.max_tokens)
