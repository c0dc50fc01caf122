"""What must not get worse while the main figure gets better."""

from collections.abc import Iterable, Mapping

from pydantic import Field, NonNegativeFloat

from tasks.gate import TOLERANCE, Decision, GateCase, Gating, overall, unmeasured

MAX_DROP = {"greedy": 0.03, "majority_at_8": 0.03, "grade": 0.03}
"""Accuracy where answers can be checked, an examiner's mean grade where they cannot."""


class NoRegression(Gating):
    """Refuses a round of which a measure fell by more than is allowed, against its parent's and, since small falls add up over
    the rounds, against its base's. A decision for each measure and each of the two. The bounds are our own.

    A measure that only the parent or base lacks is passed over. One that nobody has is refused, for its name is mistyped,
    unless it is one of the default ones: there is no decision on it.

    No measure of a judge is among the default ones. The evaluation measures the judges of the round's own recipe: a recipe
    without that judge would be refused, and one that gives the name to another strategy or model would raise its own mark.
    Name one (`self_judge_balanced_accuracy: 0.05`) where all rounds of the base have that judge with equal parameters.
    """

    max_drop: dict[str, NonNegativeFloat] = Field(MAX_DROP)
    """Largest fall of each measure against the parent's, by its name on the held-out set, in its units (0.03: three
    points)."""
    max_total_drop: dict[str, NonNegativeFloat] = Field({name: 2 * drop for name, drop in MAX_DROP.items()})
    """Largest fall of each measure against the base's."""

    def __call__(self, case: GateCase) -> list[Decision]:
        """Metrics: `gate_change/<measure>` and `gate_total_change/<measure>`."""
        ours, parents, bases = (
            overall(m, case.split) for m in (case.measures, case.parent_measures, case.base_measures)
        )
        step = [self._compare(name, ours, parents, "parent") for name in measured(self.max_drop, ours, parents)]
        total = [self._compare(name, ours, bases, "base") for name in measured(self.max_total_drop, ours, bases)]
        return step + total

    def _compare(self, name: str, ours: Mapping[str, float], reference: Mapping[str, float], ancestor: str) -> Decision:
        key, part, metric = _labels(ancestor)
        gate, allowed = f"no_regression/{part}{name}", -getattr(self, key)[name]
        if decision := unmeasured(gate, name, ours, reference, f"gate.no_regression.{key}", ancestor):
            return decision
        now, before = ours[name], reference[name]
        change = now - before
        reason = f"{before:.3f} → {now:.3f} ({change:+.3f}); a fall of {-allowed:.3f} is allowed"
        return Decision(gate, change >= allowed - TOLERANCE, reason, change, allowed, {f"{metric}/{name}": change})


def measured(names: Iterable[str], ours: Mapping[str, float], reference: Mapping[str, float]) -> list[str]:
    """The names without those default ones that neither round was measured by."""
    return sorted(name for name in names if name not in MAX_DROP or name in ours or name in reference)


def _labels(ancestor: str) -> tuple[str, str, str]:
    """Parameter, part of the gate's name, and metric of a comparison."""
    return (
        ("max_drop", "", "gate_change") if ancestor == "parent" else ("max_total_drop", "total/", "gate_total_change")
    )
