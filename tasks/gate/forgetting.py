"""Does the model still solve what its ancestors solved?"""

from pydantic import Field

from tasks.gate import Decision, GateCase, Gating, overall


class Forgetting(Gating):
    """Refuses a round that no longer solves too many of the problems that its parent, or its base, solved. The share is that
    of the greedy answers, as the member `forgetting` of `evaluate` measures it (forgetting events, Toneva et al. 2018,
    arXiv:1812.05159): accuracy can rise while some problems are lost. No paper gives a bound; a model that differs by noise
    alone loses some problems near its frontier.
    """

    member: str = "forgetting"
    """The member of `evaluate` that measures it."""
    max_share: float = Field(0.1, ge=0, le=1)
    """Largest share lost against the parent (0.1: every tenth)."""
    max_total_share: float = Field(0.15, ge=0, le=1)
    """Largest share lost against the base."""

    def __call__(self, case: GateCase) -> list[Decision]:
        """Metrics: `gate_forgetting/parent`, `gate_forgetting/base`."""
        values = overall(case.measures, case.split)
        bounds = {"parent": self.max_share, "base": self.max_total_share}
        return [self._decide(name, values, bound) for name, bound in bounds.items()]

    def _decide(self, ancestor: str, values: dict[str, float], bound: float) -> Decision:
        gate = f"forgetting/{ancestor}"
        prefix = "forgetting" if self.member == "forgetting" else f"{self.member}_forgetting"
        share = values.get(f"{prefix}_{ancestor}")
        if share is None:
            reason = f"nobody measured what the {ancestor} solved and the model does not: add {self.member} to evaluate of the base"
            return Decision(gate, False, reason)
        reason = f"{share:.1%} of what the {ancestor} solved is lost; allowed {bound:.1%}"
        return Decision(gate, share <= bound, reason, share, bound, {f"gate_forgetting/{ancestor}": share})
