"""The lines of the table of the rounds: each a quantity with its value in each round, in groups."""

from collections.abc import Callable
from dataclasses import dataclass

from tasks.core import store
from tasks.core.stage import stages
from tasks.project.costs import amount
from tasks.project.params import stages_of
from tasks.views._report_facts import Cell, Facts

SHORT = 8
"""Digits of a digest in the table."""
ACCURACIES = {
    "pass_at_1": "sampled (pass@1), %",
    "greedy": "greedy, %",
    "grade_sampled": "sampled, grade, %",
    "grade": "greedy, grade, %",
}
AT_K = ("pass_at_", "majority_at_")


@dataclass(frozen=True)
class Line:
    """A quantity: its name, and its value in each round."""

    label: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Group:
    """Quantities that belong together."""

    title: str
    lines: list[Line]


def groups(rounds: list[Facts]) -> list[Group]:
    """The groups of the table, without quantities that no round has."""
    every = [
        *(_by_level(rounds, *item) for item in ACCURACIES.items()),
        Group("k samples, %", _of_samples(rounds)),
        Group("on known answers, %", _judges(rounds)),
        Group("against people's labels, %", _by_people(rounds)),
        Group("rows", _counts(rounds)),
        Group("tokens", _token_lines(rounds)),
        Group("seconds", _seconds(rounds)),
        Group("costs", _costs(rounds)),
        Group("result", [_line(label, rounds, value) for label, value in RESULT.items()]),
    ]
    filled = [Group(g.title, [line for line in g.lines if any(line.cells)]) for g in every]
    return [g for g in filled if g.lines]


def _line(label: str, rounds: list[Facts], value: Callable[[Facts], Cell | None]) -> Line:
    return Line(label, tuple(value(f) for f in rounds))


def _measure(label: str, rounds: list[Facts], name: str, level: int | None = None) -> Line:
    return _line(label, rounds, lambda f: f.measures.get((name, level)))


def _by_level(rounds: list[Facts], name: str, title: str) -> Group:
    levels = sorted({lv for f in rounds for n, lv in f.measures if n == name and lv is not None})
    lines = [_measure(f"level {lv}", rounds, name, lv) for lv in levels]
    return Group(title, [*lines, _measure("all levels" if levels else "all", rounds, name)])


def _of_samples(rounds: list[Facts]) -> list[Line]:
    names = {n for f in rounds for n, level in f.measures if level is None}
    at_k = [n for n in names if n.startswith(AT_K) and n.rpartition("_")[2].isdigit()]
    ordered = sorted(set(at_k) - {"pass_at_1"}, key=lambda n: (n[0] != "p", int(n.rpartition("_")[2])))
    return [_measure(n.replace("_at_", "@"), rounds, n) for n in ordered]


def _judges(rounds: list[Facts]) -> list[Line]:
    names = sorted({n for f in rounds for n, level in f.measures if level is None})
    suffixes = {
        "_balanced_accuracy": "balanced acc.",
        "_auroc": "AUROC",
        "_calibration_error": "calibration error",
        "_position_bias": "position bias",
    }
    lines = [
        _measure(f"{n.removesuffix(end).replace('_', ' ')}: {label}", rounds, n)
        for end, label in suffixes.items()
        for n in names
        if n.endswith(end)
    ]
    location = _measure("critic: wrong step found", rounds, "critique_location")
    return [*lines, location, _measure("greedy, self-corrected", rounds, "refined")]


def _by_people(rounds: list[Facts]) -> list[Line]:
    names = dict.fromkeys(name for f in rounds for name in f.people)
    return [_line(name.replace("_", " "), rounds, lambda f, n=name: f.people.get(n)) for name in names]


def _counts(rounds: list[Facts]) -> list[Line]:
    def prefixed(prefix: str, label: str) -> list[Line]:
        names = sorted({k for f in rounds for k in f.metrics if k.startswith(prefix)})
        return [_line(f"{label}{_words(n.removeprefix(prefix))}", rounds, _count(n)) for n in names]

    return [
        _line("prompts written", rounds, _written_prompts),
        *prefixed("prompts_rejected/", "  rejected: "),
        _line("  used", rounds, _count("prompts")),
        _line("answers sampled", rounds, _count("responses")),
        _line("  failed", rounds, _count("response_errors", quiet=True)),
        _line("kept", rounds, _count("kept")),
        *prefixed("dropped/", "  dropped: "),
        _line("critiques kept", rounds, _kept_critiques),
        _line("pairs", rounds, _count("pairs")),
        _line("trained on", rounds, _count("training_rows")),
        *prefixed("training_rows/", "  from "),
        *prefixed("training_dropped/", "  left out: "),
        _line("preferences", rounds, _count("preferences")),
        *prefixed("preferences_dropped/", "  left out: "),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _count(name: str, quiet: bool = False) -> Callable[[Facts], Cell | None]:
    def value(facts: Facts) -> Cell | None:
        number = facts.metrics.get(name)
        return None if number is None or (quiet and not number) else Cell(f"{number:,.0f}")

    return value


def _written_prompts(facts: Facts) -> Cell | None:
    used = facts.metrics.get("prompts")
    rejected = sum(v for k, v in facts.metrics.items() if k.startswith("prompts_rejected/"))
    return None if used is None else Cell(f"{used + rejected:,.0f}")


def _kept_critiques(facts: Facts) -> Cell | None:
    kept, total = facts.metrics.get("critiques_kept"), facts.metrics.get("critiques")
    return None if kept is None or total is None else Cell(f"{kept:,.0f} of {total:,.0f}")


def _tokens(kind: str) -> Callable[[Facts], Cell | None]:
    return lambda facts: Cell(f"{sum(m.tokens.get(f'{kind}_tokens', 0) for m in facts.stages.values()):,}")


def _token_lines(rounds: list[Facts]) -> list[Line]:
    """Tokens generated and read; those of each engine, where there are several."""
    engines = sorted({name for f in rounds for name in f.costs.tokens})
    by_engine = [_line(f"  of {name}", rounds, _of_engine(name)) for name in engines if len(engines) > 1]
    return [_line("generated", rounds, _tokens("completion")), _line("read", rounds, _tokens("prompt")), *by_engine]


def _of_engine(name: str) -> Callable[[Facts], Cell | None]:
    return lambda facts: Cell(f"{facts.costs.tokens[name]:,}") if name in facts.costs.tokens else None


def _costs(rounds: list[Facts]) -> list[Line]:
    """GPU hours, where some round held a GPU, and money, where there are prices."""
    held = any(f.costs.gpu_hours for f in rounds)
    hours = _line("GPU hours", rounds, lambda f: Cell(f"{f.costs.gpu_hours:,.2f}") if held else None)
    return [
        hours,
        _line(
            rounds[0].costs.money_label,
            rounds,
            lambda f: None if f.costs.money is None else Cell(amount(f.costs.money)),
        ),
    ]


def _seconds(rounds: list[Facts]) -> list[Line]:
    """Seconds of each stage without its process start-up, which has a line of its own for all stages."""
    lines = [_line(name, rounds, _work(name)) for name in stages() if any(name in f.stages for f in rounds)]
    return [*lines, _line("process start-up", rounds, _start), _line("total", rounds, _total)]


def _work(stage: str) -> Callable[[Facts], Cell | None]:
    def value(facts: Facts) -> Cell | None:
        manifest = facts.stages.get(stage)
        return Cell(_time(_total_seconds(manifest) - manifest.seconds.get("start", 0))) if manifest else None

    return value


def _total_seconds(manifest: store.Manifest) -> float:
    return sum(manifest.seconds.values())


def _start(facts: Facts) -> Cell:
    return Cell(_time(sum(m.seconds.get("start", 0) for m in facts.stages.values())))


def _total(facts: Facts) -> Cell:
    return Cell(_time(sum(_total_seconds(m) for m in facts.stages.values())))


def _time(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds < 1000 else f"{seconds:,.0f}"


def _gate(facts: Facts) -> Cell | None:
    return decided(facts) if facts.decisions else None


def decided(facts: Facts) -> Cell:
    """The decision of its gates in two words."""
    promoted = facts.decisions.get("all", (False, ""))[0]
    return Cell("promoted", style="green") if promoted else Cell("held back", style="yellow")


def _champion(facts: Facts) -> Cell | None:
    return Cell(facts.standing, style="green") if facts.standing else None


def _state(facts: Facts) -> Cell:
    if facts.absent:
        return Cell(f"{len(facts.absent)} missing", style="red")
    if facts.changed:
        return Cell(f"{len(facts.changed)} damaged", style="red")
    if facts.stale:
        return Cell(f"{len(facts.stale)} stale", style="yellow")
    ran, whole = len(facts.stages), len(stages_of(facts.block))
    return Cell("current" if ran == whole else f"{ran} of {whole}")


def _model(facts: Facts) -> Cell | None:
    return Cell(facts.model[:SHORT]) if facts.model else None


RESULT = {"gate": _gate, "champion": _champion, "stages": _state, "model": _model}
