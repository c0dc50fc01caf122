"""What a change between two rounds comes from: their stages, parents and seeds are exchanged, and what follows runs again.

The units in which the rounds differ stand in the order in which they act: parent, seed, prompts … evaluate. A counterfactual
has the first k units from the good round and the others from the bad one; k = 0 is the bad round, all units are the good one,
so the changes between neighbours add up to the whole change. The path is cut before the first stage that differs, and then
halved, where the change of a part is clear of noise: one cause among m units is found in about log2(m) runs, most of which run
the last stages alone. A part that is not halved has been measured as a whole. The stage that explains most is then exchanged
alone, all else as in the bad round: where it acts only together with other differences, the two disagree.

The first unit, `rerun`, is the bad round as its stages make it today: plans do not tell of a table that is not what its stage
wrote, nor of code as it was then.

Intervals are over the items of the exam, which all counterfactuals answer with equal seeds. What another draw of data and of
the order of training would do, they do not hold; the unit `seed` shows it where the seeds differ.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from tasks.core import store
from tasks.project import _bisect_metric as metrics
from tasks.project import _bisect_runs as runs
from tasks.project._bisect_metric import Change, Measured
from tasks.project._bisect_runs import PARENT, RERUN, SEED, Counterfactual, Rounds, Unit
from tasks.project._bisect_slices import slices
from tasks.project._bisect_units import open_rounds, units

Verdict = Literal["noise", "cause", "spread", "unmeasured"]


class Run(BaseModel):
    """A counterfactual."""

    name: str
    """As it is printed: `r3 with parent, seed of r1`."""
    value: float | None = None
    change: Change | None = None
    """Against the bad round."""
    ran: list[str] = []
    """Stages that ran; all others were there."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    found: bool = False
    """An earlier call made it."""
    failure: str | None = None
    """Why it has no result."""


class Part(BaseModel):
    """Units, or a slice of the training rows, and what they do to the measure."""

    units: list[str]
    change: Change
    """What they add on the way from the good round to the bad one; of a slice, what its rows add to the bad round."""
    share: float | None
    """Of the whole change; null where that is 0."""
    rows: int | None = None
    """Of a slice."""


class Bisection(BaseModel):
    """What was found."""

    good: str
    bad: str
    metric: str
    values: dict[str, float]
    change: Change
    """From the good round to the bad one."""
    units: list[Unit]
    """All in which they differ, in the order in which it acts."""
    runs: list[Run] = []
    parts: list[Part] = []
    """They add up to the change; slices, which act together, do not."""
    verdict: Verdict = "noise"
    """`noise`: the change is not clear of 0. `cause`: single units explain it. `spread`: no unit alone is clear of noise.
    `unmeasured`: counterfactuals that would tell have failed."""
    causes: list[str] = []
    """Units that explain part of the change, the greatest part first."""
    confirmation: Part | None = None
    """What the first stage among the causes does when it alone is exchanged in the bad round."""
    unlike: list[str] = []
    """Stages of the bad round that gave another result when they ran again."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0


Report = Callable[[Bisection, str | Run], None]
"""Is told what begins, as a text with the stages and seconds to expect, and what came of it."""


def bisect(root: Path, good: str, bad: str, metric: str, report: Report, split_all: bool = False) -> Bisection:
    """Attributes the change of a measure from the round `good` to the round `bad` to the units in which they differ. With
    `split_all` every unit gets a part of its own, also where several together do nothing.

    Raises:
        UnknownName: for a round or measure that does not exist.
        FlywheelError: as `open_rounds`; when only one round has the measure, or it has no interval.
    """
    search = _open(root, good, bad, metric, report)
    if search.result.change.is_clear or split_all:
        search.attribute(split_all)
        search.confirm()
    return search.end()


def bisect_slices(root: Path, good: str, bad: str, metric: str, by: str, report: Report) -> Bisection:
    """Attributes the value of a measure in the round `bad` to slices of its training rows: each is left out, and the model
    trained and examined again.

    Raises:
        UnknownName, FlywheelError: as `bisect`; also for a kind of slice that its rows do not have.
    """
    search = _open(root, good, bad, metric, report)
    for one in slices(search.rounds.root, bad, by):
        measured = search.measure(runs.compose_slice(search.rounds, one), f"{bad} without {one.name}")
        if measured:
            change = metrics.change(measured, search.bad)
            search.result.parts.append(Part(units=[one.name], change=change, share=search.share(change), rows=one.rows))
    clear = [p for p in search.result.parts if p.change.is_clear]
    search.result.causes = [p.units[0] for p in sorted(clear, key=lambda p: -abs(p.change.value))]
    search.result.verdict = "cause" if clear else "noise" if search.result.parts else "unmeasured"
    return search.end()


def _open(root: Path, good: str, bad: str, metric: str, report: Report) -> "_Search":
    rounds = open_rounds(root, good, bad)
    metrics.check(root, metric, good, bad)
    return _Search(rounds, metric, units(rounds), report)


class _Search:
    """Makes counterfactuals and compares them."""

    def __init__(self, rounds: Rounds, metric: str, found: list[Unit], report: Report) -> None:
        self.rounds, self.metric, self.units, self.report = rounds, metric, found, report
        self.start = time.monotonic()
        self.good, self.bad = (metrics.measure(rounds.root, n, metric) for n in (rounds.good, rounds.bad))
        self.points: dict[int, Measured | None] = {0: self.bad, len(found): self.good}
        """Measured by the number of units that are the good round's; None where the run failed."""
        self.result = Bisection(
            good=rounds.good,
            bad=rounds.bad,
            metric=metric,
            values={rounds.good: self.good.value, rounds.bad: self.bad.value},
            change=metrics.change(self.good, self.bad),
            units=found,
        )

    def attribute(self, split_all: bool) -> None:
        """Splits the path into parts, and says which of them explain the change."""
        if not self.units:
            self.result.verdict = "spread"
            return
        result = self.result
        for low, high in self._split(0, len(self.units), split_all):
            change = self._change(low, high)
            result.parts.append(
                Part(units=[u.name for u in self.units[low:high]], change=change, share=self.share(change))
            )
        causes = [p for p in result.parts if len(p.units) == 1 and p.change.is_clear and self._along(p.change)]
        result.causes = [p.units[0] for p in sorted(causes, key=lambda p: -abs(p.change.value))]
        failed = any(p is None for p in self.points.values())
        result.verdict = (
            "noise" if not result.change.is_clear else "cause" if causes else "unmeasured" if failed else "spread"
        )

    def _split(self, low: int, high: int, split_all: bool) -> Iterator[tuple[int, int]]:
        """Parts of the path as (first, last) points. It is first cut before the first stage that differs, where the good
        round has all that comes before; then in the middle, of two middles at the later one: few stages run for these.
        """
        stages = next((n for n, u in enumerate(self.units) if u.name not in (RERUN, PARENT, SEED)), 0)
        middles = sorted(range(low + 1, high), key=lambda k: (k != stages, abs(2 * k - low - high), -k))
        if split_all or self._change(low, high).is_clear:
            for middle in middles:
                if self._point(middle):
                    yield from self._split(low, middle, split_all)
                    yield from self._split(middle, high, split_all)
                    return
        yield low, high

    def _point(self, count: int) -> Measured | None:
        if count not in self.points:
            chosen = [u.name for u in self.units[:count]]
            self.points[count] = self.exchanged(chosen)
        return self.points[count]

    def _change(self, low: int, high: int) -> Change:
        """What the units between two points add to the bad round."""
        fewer, more = self.points[low], self.points[high]
        assert fewer
        assert more
        return metrics.change(more, fewer)

    def _along(self, change: Change) -> bool:
        return change.value * self.result.change.value > 0

    def share(self, change: Change) -> float | None:
        """The part of the whole change that this is."""
        whole = self.result.change.value
        return change.value / whole if whole else None

    def confirm(self) -> None:
        """Exchanges the first stage among the causes alone, where the path has not done so, and today's code can."""
        by_name = {u.name: u for u in self.units}
        stages = [c for c in self.result.causes if c not in (RERUN, PARENT, SEED) and by_name[c].repeatable]
        if not stages or len(self.units) == 1:
            return
        edited = [RERUN] if RERUN in self.result.causes else []
        reference = self.points[1] if edited else self.bad
        measured = self.exchanged([*edited, stages[0]])
        if measured and reference:
            change = metrics.change(measured, reference)
            self.result.confirmation = Part(units=stages[:1], change=change, share=self.share(change))

    def exchanged(self, chosen: list[str]) -> Measured | None:
        """The measure in the bad round with units of the good one."""
        what = runs.compose(self.rounds, self.units, chosen)
        named = [n for n in chosen if n != RERUN]
        name = (
            f"{self.rounds.bad} with {', '.join(named)} of {self.rounds.good}"
            if named
            else f"{self.rounds.bad} run again"
        )
        measured = self.measure(what, name)
        if measured and chosen == [RERUN]:
            then = self.rounds.manifests[self.rounds.bad]
            self.result.unlike = [
                s
                for s, outputs in runs.made(what).outputs.items()
                if outputs != {n: o.digest for n, o in then[s].outputs.items()}
            ]
        return measured

    def measure(self, what: Counterfactual, name: str) -> Measured | None:
        """The measure in a counterfactual, which is made where it is not there yet; None where it fails."""
        run = Run(name=name, found=what.is_made)
        if not run.found:
            self.report(self.result, f"{name}: {_expected(self.rounds, what)}")
            run.failure = runs.make(what)
        measured = None
        if run.failure is None:
            measured, made = metrics.measure(what.place, runs.NAME, self.metric), runs.made(what)
            run.value, run.change, run.ran = measured.value, metrics.change(self.bad, measured), made.ran
            run.seconds, run.cpu_seconds = made.seconds, made.cpu_seconds
        self.result.runs.append(run)
        self.report(self.result, run)
        return measured

    def end(self) -> Bisection:
        """The result; what counterfactuals wrote beside their exams is removed."""
        runs.clean(self.rounds.root, keep_logs=any(r.failure for r in self.result.runs))
        self.result.seconds = round(time.monotonic() - self.start, 1)
        self.result.cpu_seconds = round(sum(r.cpu_seconds for r in self.result.runs if not r.found), 1)
        return self.result


def _expected(rounds: Rounds, what: Counterfactual) -> str:
    """The stages that may run, and the seconds that they took in the bad round."""
    steps = what.to_run
    made = store.manifests(rounds.root, rounds.bad)
    seconds = sum(v for s in steps for part, v in made[s.stage].seconds.items() if part != "start")
    return f"{', '.join(s.stage for s in steps)}; they took {seconds:.0f} s"
