"""Preference optimization with token-level reward regularization: DPO with a reward for each token."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat

from tasks.train.dpo import DPO

if TYPE_CHECKING:
    from tasks.training.preferring import PairTrainer

BETTER = "Give a correct and careful answer to the following."
WORSE = "Give a wrong and careless answer to the following."


class TReg(DPO):
    """Trains on pairs by DPO, and moves each token's likelihood by a reward that the reference gives it: T-REG, token-level
    reward regularization (Zhou et al. 2024, arXiv:2412.02685). The loss of a pair is
    −log σ(βΔ) + α w Σ_{y_w, y_l} [−Σ_t β r̂_t log π(y_t)], Δ as in `dpo`. The token reward is
    r̂_t = σ(log [π_ref(y_t | better prompt) / π_ref(y_t | worse prompt)]) − ½, computed once before the first step, and
    w = σ(r(y_l) − r(y_w)) with r = β log π/π_ref of a completion. Smoothing, weights and reference are as in `dpo`.

    Our readings: w has no gradient, as it is the factor of DPO's own gradient; the reference computes r̂; and the two
    instructions open the prompt's first turn, in our own words, as we have not read those of the paper's appendix.
    """

    can_be_sharded: ClassVar[bool] = False

    alpha: NonNegativeFloat = 0.25
    """Weight α of the regularization; the paper takes 0.1, 0.25 or 0.5."""
    better: str = BETTER
    """Instruction before the prompt under which a good token is likely."""
    worse: str = WORSE
    """Instruction before the prompt under which a bad token is likely."""

    def pair_trainer(self) -> tuple[type["PairTrainer"], dict[str, Any]]:
        """The kind of trainer, and its further settings."""
        from tasks.training.crediting import CreditTrainer

        return CreditTrainer, {"alpha": self.alpha}

    def prepare(self, trainer: Any) -> None:
        """Has the reference reward each token."""
        trainer.credit(self.better, self.worse)
