"""What a bake-off found: a row for each recipe, the front of gain against tokens, a report in Markdown, a chart."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.core import store
from tasks.project import recipes
from tasks.project.bakeoff import CONTROLS, PLACE, Size, branch, prepare
from tasks.project.bakeoff import run as make
from tasks.project.params import Pipeline, load_params
from tasks.views import judges as judging
from tasks.views.record import record, tracking_uri

REPORT, CHART = Path("docs/bakeoff.md"), Path("docs/bakeoff.png")
DATA_STAGES = ("prompts", "generate", "judge", "filter", "critique", "pair", "collect")
VERSIONS = ("flywheel", "torch", "transformers", "trl")
CHEAP: dict[str, dict[str, Any]] = {"win_rate": {"same": "answer", "opponents": 2}}
"""Settings of judges whose cost would be quadratic."""
FEW_ROWS = 50
HIGH_LOSS = 1.0
"""Mean loss over a training, in nats a token, above which the model did not learn its rows; own samples have below 0.1."""
LOW_AUROC = 0.6
LOW_ENTROPY = 0.02
"""Mean entropy of a sampled token, in nats, below which eight samples are nearly one; the taught base has 0.08."""


@dataclass(frozen=True)
class Gain:
    """A change of accuracy in points with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.1f} ({self.low:+.1f} … {self.high:+.1f})"


@dataclass(frozen=True)
class Result:
    """What a recipe brought, over its seeds."""

    recipe: str
    seeds: int
    sampled: Gain | None
    greedy: Gain | None
    measures: dict[str, float] = field(default_factory=dict)
    """Means over seeds of the last round's measures, by name."""
    tokens: float = 0.0
    """Generated tokens of a branch, mean over seeds."""
    seconds: float = 0.0
    """Seconds of a branch, mean over seeds."""
    remark: str = ""
    """Why it did not help, from its monitors, or what failed."""
    by_seed: tuple[float, ...] = ()
    """The gain in sampled pass@1 of each seed alone, in points."""


def run(
    root: Path,
    chosen: str,
    size: Size,
    jobs: int,
    judged_problems: int,
    with_report: bool,
    report: Callable[[str], None],
) -> None:
    """Makes what is missing of a bake-off, records it in MLflow and prints the table.

    Raises:
        UnknownName: for a recipe or base that does not exist.
        FlywheelError: when the base cannot be made.
    """
    place, known = root / PLACE, recipes.names(root)
    names = known if chosen == "all" else [*dict.fromkeys(chosen.split(","))]
    for name in names:
        recipes.read(root, name)
    prepare(root, place, names, size)
    failures = make(place, names, size, jobs, report)
    os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri(root))
    report(record(place, move_alias=False))
    rows = results(place, names, size, failures)
    show(rows)
    last = f"{branch('sharpen', 1)}_{size.rounds}"
    models = [size.base, *([last] if "sharpen" in names else [])]
    judged = judge_rows(place, models, judged_problems) if judged_problems else []
    if with_report:
        write(root, place, rows, judged, size, command(chosen, size, judged_problems))
        report(f"{REPORT} and {CHART} were written.")


def judge_rows(place: Path, models: Sequence[str], problems: int) -> list[judging.Row]:
    """Every judge on the same answers of these models."""
    with chdir(place):
        rows = [row for name in models for row in judging.measure(Path(), name, judging.all_judges(CHEAP), problems, 8)]
    judging.show(rows)
    return rows


def command(chosen: str, size: Size, judged_problems: int) -> str:
    """The command that made a bake-off, with what is not a default."""
    changed = {k: v for k, v in size.model_dump().items() if v != Size.model_fields[k].default and k != "gold"}
    options = [
        f"--recipes {chosen}",
        *(f"--{k.replace('_', '-')} {v}" for k, v in changed.items()),
        f"--judges {judged_problems} --write",
    ]
    return f"flywheel bakeoff {' '.join(options)}"


def results(place: Path, names: Sequence[str], size: Size, failures: Mapping[str, str]) -> list[Result]:
    """A result for each recipe, the greatest gain first; recipes of which no branch was finished come last."""
    params = load_params(place)
    base = rates(place, size.base)
    rows = [_result(place, params, recipe, size, base, failures) for recipe in names]
    return sorted(rows, key=lambda r: -r.sampled.value if r.sampled else np.inf)


def _result(
    place: Path, params: Pipeline, recipe: str, size: Size, base: pl.DataFrame, failures: Mapping[str, str]
) -> Result:
    branches = [branch(recipe, seed) for seed in range(1, size.seeds + 1)]
    failed = [f"{name}: {failures[name]}" for name in branches if name in failures]
    last = [f"{name}_{size.rounds}" for name in branches]
    ended = [name for name in last if store.has(place, name, "measures")]
    if not ended:
        return Result(recipe, 0, None, None, remark="; ".join(failed) or "not run yet")
    rounds = [rates(place, name) for name in ended]
    gains = {mode: gain(base, rounds, mode) for mode in ("sampled", "greedy")}
    by_seed = [one.value for r in rounds if (one := gain(base, [r], "sampled"))]
    measures = [_measures(place, name) for name in ended]
    spent = [cost(place, params, name.rpartition("_")[0]) for name in ended]
    row = Result(
        recipe, len(ended), gains["sampled"], gains["greedy"],
        {k: float(np.mean([m[k] for m in measures if k in m])) for k in sorted({k for m in measures for k in m})},
        float(np.mean([tokens for tokens, _ in spent])), float(np.mean([seconds for _, seconds in spent])),
        by_seed=tuple(by_seed),
    )  # fmt: skip
    return Result(
        **vars(row) | {"remark": "; ".join([*failed, *reasons(row, place, ended, _measures(place, size.base))])}
    )


def rates(place: Path, name: str) -> pl.DataFrame:
    """item, mode, rate: share of right answers of each held-out problem, an answer that could not be checked being wrong."""
    evals = store.scan(place, name, "evals")[0].filter(split="heldout", member="answers")
    rate = pl.col("correct").fill_null(False).cast(pl.Float64).mean()
    return evals.group_by("item", "mode").agg(rate=rate).sort("item", "mode").collect()


def gain(base: pl.DataFrame, rounds: Sequence[pl.DataFrame], mode: str) -> Gain | None:
    """Mean change from the base, in points: over seeds for each problem, then over problems, with the normal interval over
    problems. The seeds share problems and base, so their spread is in the problems' means.
    """
    now = pl.concat(rounds).filter(mode=mode).group_by("item").agg(pl.col("rate").mean())
    both = base.filter(mode=mode).join(now, on="item", suffix="_now").sort("item")
    if len(both) < 2:
        return None
    change = 100 * (both["rate_now"] - both["rate"]).to_numpy()
    half = 1.96 * change.std(ddof=1) / np.sqrt(len(change))
    return Gain(float(change.mean()), float(change.mean() - half), float(change.mean() + half))


def _measures(place: Path, name: str) -> dict[str, float]:
    measures = store.scan(place, name, "measures")[0].filter(pl.col("level").is_null()).drop_nulls("value")
    metrics = {k: v for m in store.manifests(place, name).values() for k, v in m.metrics.items() if "/" not in k}
    return metrics | dict(measures.select("name", "value").collect().rows())


def cost(place: Path, params: Pipeline, name: str) -> tuple[int, float]:
    """Tokens that a branch generated to make its data, and the seconds of all its stages but the exam, without loading."""
    tokens, seconds = 0, 0.0
    for block in params.rounds:
        if block.startswith(f"{name}_"):
            manifests = {n: m for n, m in store.manifests(place, block).items() if n not in ("evaluate", "gate")}
            tokens += sum(m.tokens.get("completion_tokens", 0) for n, m in manifests.items() if n in DATA_STAGES)
            seconds += sum(sum(s for part, s in m.seconds.items() if part != "start") for m in manifests.values())
    return tokens, seconds


def reasons(row: Result, place: Path, names: Sequence[str], base: Mapping[str, float]) -> list[str]:
    """Why a recipe brought nothing, as its monitors suggest beside the base's; empty for one that helped."""
    if row.sampled is None or row.sampled.low > 0:
        return []
    found = row.measures
    unsent = sum(
        "token_budget" in w for name in names for m in store.manifests(place, name).values() for w in m.warnings
    )
    before = base.get("entropy", 1.0)
    entropy = found.get("entropy", before)
    checks = {
        "the budget was spent before all its requests were sent": unsent > 0,
        "it trained nothing": found.get("trained", 1.0) == 0,
        f"only {found.get('training_rows', 0):.0f} rows and {found.get('preferences', 0):.0f} pairs to learn from": (
            found.get("training_rows", 0) + found.get("preferences", 0) < FEW_ROWS
        ),
        f"its reward hardly tells right from wrong (AUROC {found.get('exploration_auroc', 1):.2f})": (
            found.get("exploration_auroc", 1.0) < LOW_AUROC
        ),
        f"its rows were not learnt (loss {found.get('sft_loss', 0):.1f} nats a token)": found.get("sft_loss", 0.0)
        > HIGH_LOSS,
        f"answers lost their spread (entropy {entropy:.3f})": entropy < LOW_ENTROPY,
        f"answers are less certain than the base's (entropy {entropy:.3f}, before {before:.3f})": entropy
        > 1.1 * before,
    }
    return [reason for reason, holds in checks.items() if holds] or ["no monitor says why"]


def front(rows: Iterable[Result]) -> set[str]:
    """Recipes than which no other gained at least as much with fewer tokens."""
    points = [(r.tokens, -r.sampled.value, r.recipe) for r in rows if r.sampled]
    best, chosen = np.inf, set()
    for _, loss, name in sorted(points):
        if loss < best:
            best, chosen = loss, chosen | {name}
    return chosen


COLUMNS = {
    "pass@8": ("pass_at_8", 100), "distinct-2": ("distinct_2", 1), "entropy": ("entropy", 1),
    "reward AUROC": ("exploration_auroc", 1),
}  # fmt: skip


def cells(row: Result, on_front: bool) -> list[str]:
    """A line of the table."""
    name = f"{row.recipe}{' ★' if on_front else ''}{' (control)' if row.recipe in CONTROLS else ''}"
    numbers = [_number(row.measures.get(key), scale) for key, scale in COLUMNS.values()]
    gains = [str(g) if g else "–" for g in (row.sampled, row.greedy)]
    return [name, *gains, *numbers, f"{row.tokens / 1000:,.0f}k", f"{row.seconds:,.0f}", _seeds(row)]


HEADS = ["recipe", "sampled pass@1", "greedy", *COLUMNS, "tokens", "seconds", "each seed"]


def _seeds(row: Result) -> str:
    """The seeds' own gains, the least first."""
    return " ".join(f"{value:+.0f}" for value in sorted(row.by_seed)) or "–"


def _number(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{scale * value:.1f}" if scale != 1 else f"{value:.3f}"


def show(rows: Sequence[Result]) -> None:
    """Prints the table, and the remarks on those that did not help."""
    from rich.console import Console
    from rich.table import Table

    table, best = Table(*HEADS[:1]), front(rows)
    for head in HEADS[1:]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*cells(row, row.recipe in best))
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    for row in rows:
        if row.remark:
            console.print(f"{row.recipe}: {row.remark}", highlight=False)


def write(
    root: Path, place: Path, rows: Sequence[Result], judged: Sequence[judging.Row], size: Size, command: str
) -> None:
    """Writes `docs/bakeoff.md` and its chart."""
    (root / REPORT.parent).mkdir(exist_ok=True)
    chart(rows).savefig(root / CHART, dpi=110)
    (root / REPORT).write_text(markdown(place, rows, judged, size, command), encoding="utf-8")


def markdown(place: Path, rows: Sequence[Result], judged: Sequence[judging.Row], size: Size, command: str) -> str:
    """The report."""
    best = front(rows)
    base = {name: value for name, value in _measures(place, size.base).items() if name in ("pass_at_1", "greedy")}
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row, row.recipe in best)) + " |" for row in rows]
    remarks = [f"- `{row.recipe}`: {row.remark}" for row in rows if row.remark]
    titles = [f"- `{name}`: {recipes.read(place, name).title}" for name in sorted(r.recipe for r in rows)]
    return TEXT.format(
        command=command,
        today=date.today().isoformat(),
        versions=", ".join(f"{name} {version(name)}" for name in VERSIONS),
        size=", ".join(f"{key} {value}" for key, value in size.model_dump().items()),
        sampled=100 * base.get("pass_at_1", float("nan")),
        greedy=100 * base.get("greedy", float("nan")),
        table="\n".join(lines),
        chart=CHART.name,
        remarks="\n".join(remarks) or "None.",
        recipes="\n".join(titles),
        judges=judging.markdown(judged) if judged else "They were not measured: `--judges 350` does it.",
    )


TEXT = """# Bake-off

Every recipe from the same base, on the same problems, with the same budget of generated tokens a round.

- made by `{command}` on {today}, with {versions}
- {size}
- the base: {sampled:.1f} % sampled pass@1, {greedy:.1f} % greedy

Gains are in points against the base on the same held-out problems, with 95 % intervals over problems; what each seed alone
gained in sampled pass@1 stands in the last column. ★: no other recipe gained as much with fewer tokens. Tokens are those
generated to make data; seconds are of all stages but the exam, a process on one core.

{table}

![Gain against tokens]({chart})

## What did not help, and why

{remarks}

## Judges

Every judge on the same sampled answers to held-out problems, eight each, of the base and of the last round of `sharpen`, beside
the verifier. Position bias is the share of comparisons that change with the order; tokens are generated ones, also where an
earlier judge had asked the same and the cache answered; seconds are those that were left then.

{judges}

## Recipes

{recipes}
"""


def chart(rows: Sequence[Result]) -> Any:
    """Gain in sampled pass@1 against generated tokens, with the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes, best = figure.subplots(), front(rows)
    scored = [r for r in rows if r.sampled]
    for row in scored:
        assert row.sampled is not None
        error = [[row.sampled.value - row.sampled.low], [row.sampled.high - row.sampled.value]]
        color = "tab:gray" if row.recipe in CONTROLS else "tab:red" if row.recipe in best else "tab:blue"
        axes.errorbar(row.tokens / 1000, row.sampled.value, yerr=error, fmt="o", color=color, capsize=2)
        axes.annotate(
            row.recipe, (row.tokens / 1000, row.sampled.value), xytext=(5, 4), textcoords="offset points", fontsize=8
        )
    edge = sorted((r.tokens / 1000, r.sampled.value) for r in scored if r.sampled and r.recipe in best)
    axes.plot(*zip(*edge, strict=True), color="tab:red", linewidth=0.8) if edge else None
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="generated tokens (thousands)", ylabel="gain in sampled pass@1 (points)")
    return figure
