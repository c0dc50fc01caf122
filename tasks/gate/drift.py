"""Are answers much longer, shorter or surer than the parent's?"""

from pydantic import Field, model_validator

from tasks.gate import Decision, GateCase, Gating, overall, unmeasured


class Drift(Gating):
    """Refuses a round whose answers have far less entropy than its parent's, or another length: the ratio of each mean over
    the answers to the split must lie within bounds.

    A reward that is not the truth also rises with length (Singhal et al. 2023, arXiv:2310.03716), and training for it uses up
    entropy (Cui et al. 2025, arXiv:2505.22617); accuracy shows neither until late. The bounds are our own. A measure that an
    engine does not give, such as entropy, is passed over.
    """

    min_entropy_ratio: float = Field(0.2, ge=0)
    """Smallest share of the parent's entropy that must be left. Sharpening takes some by itself: the embedded base's first
    round leaves a third of it, the second one half."""
    min_length_ratio: float = Field(0.5, ge=0)
    """Shortest mean response, in parts of the parent's."""
    max_length_ratio: float = Field(2.0, ge=0)
    """Longest mean response, in parts of the parent's."""

    @model_validator(mode="after")
    def _ordered(self) -> "Drift":
        if self.min_length_ratio > self.max_length_ratio:
            raise ValueError(f"min_length_ratio {self.min_length_ratio:g} is above max_length_ratio")
        return self

    def __call__(self, case: GateCase) -> list[Decision]:
        """Metrics: `gate_entropy_ratio`, `gate_length_ratio`."""
        ours, parents = (overall(m, case.split) for m in (case.measures, case.parent_measures))
        return [
            compare("entropy", "entropy", ours, parents, self.min_entropy_ratio),
            compare("length", "response_tokens", ours, parents, self.min_length_ratio, self.max_length_ratio),
        ]


def compare(
    what: str,
    measure: str,
    ours: dict[str, float],
    parents: dict[str, float],
    lowest: float,
    highest: float = float("inf"),
) -> Decision:
    """Whether the ratio of a measure to the parent's lies within bounds; the nearer one is the decision's threshold."""
    gate = f"drift/{what}"
    if decision := unmeasured(gate, measure, ours, parents):
        return decision
    now, before = ours[measure], parents[measure]
    if before <= 0:
        return Decision(gate, True, f"the parent's {measure} is {before:g}: there is no ratio")
    ratio = now / before
    bound = highest if ratio > 1 and highest < float("inf") else lowest
    bounds = f"{lowest:g} … {highest:g}" if highest < float("inf") else f"at least {lowest:g}"
    reason = f"{measure} {before:.3f} → {now:.3f}, {ratio:.2f} of the parent's; must be {bounds}"
    return Decision(gate, lowest <= ratio <= highest, reason, ratio, bound, {f"gate_{what}_ratio": ratio})
