"""Self-exploring preference optimization: DPO that lowers the likelihood of the reference's own answers."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveInt

from tasks.train.dpo import DPO

if TYPE_CHECKING:
    from tasks.training.preferring import PairTrainer


class SELM(DPO):
    """Trains on pairs by DPO, and lowers the likelihood of what the reference would answer itself, so that the policy
    explores: SELM (Zhang et al. 2024, arXiv:2405.19332). The loss of a pair is
    −log σ(βΔ) + αβ [log π(y') − log π_ref(y')], Δ as in `dpo` and y' the reference's own greedy answer to the prompt, written
    once before the first step. The sign of the term is that of the authors' code (shenao-zhang/SELM), where y' may also
    become the chosen or the rejected answer; here that is left to `pair`. Smoothing, weights and reference are as in `dpo`.
    """

    can_be_sharded: ClassVar[bool] = False

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
