"""What must not get worse while the main figure gets better."""

from pydantic import Field, NonNegativeFloat

from tasks.errors import suggest
from tasks.gate import Decision, Evidence, overall
from tasks.stage import Strategy


class NoRegression(Strategy):
    """Measures that may not fall by more than so much against the parent's: a row for each."""

    most: dict[str, NonNegativeFloat] = Field({"greedy": 0.03, "majority_at_8": 0.03, "judge_balanced_accuracy": 0.05})
    """Largest fall of each measure, by its name on the held-out set, in its units (0.03: three points). One that only
    the parent lacks is passed over; one that neither has is refused."""

    def __call__(self, evidence: Evidence) -> list[Decision]:
        """Metrics: `gate_change/<measure>`."""
        now, before = (overall(m, evidence.split) for m in (evidence.measures, evidence.parent_measures))
        return [self._judge(name, now, before) for name in sorted(self.most)]

    def _judge(self, name: str, ours: dict[str, float], theirs: dict[str, float]) -> Decision:
        gate, allowed = f"no_regression/{name}", -self.most[name]
        now, before = ours.get(name), theirs.get(name)
        if now is None and before is None:
            why = f"neither round was measured by {name!r} of gate.panel.no_regression.most"
            return Decision(gate, False, f"{why}; {suggest(name, ours | theirs)}")
        if before is None:
            return Decision(gate, True, "the parent was not measured by it")
        if now is None:
            return Decision(gate, False, f"was not measured; the parent's is {before:.3f}")
        change = now - before
        reason = f"{before:.3f} → {now:.3f} ({change:+.3f}); allowed {allowed:+.3f}"
        # the tolerance is for falls of exactly what is allowed, which floats miss
        return Decision(gate, change >= allowed - 1e-9, reason, change, allowed, {f"gate_change/{name}": change})
