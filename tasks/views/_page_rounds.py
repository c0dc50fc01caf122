"""Sections of a page on the rounds and their exam: who is champion and by how much, the tree, accuracy, pass@k."""

from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import mean as average

from markupsafe import Markup

from tasks.core import store
from tasks.core.champion import Look
from tasks.evaluate._measures import mean
from tasks.evaluate.answers import pass_at_k
from tasks.project.champion import decision
from tasks.project.params import stages_of
from tasks.views import _diff_outcomes as outcomes
from tasks.views import report
from tasks.views._page_base import render
from tasks.views._page_charts import Point, Series, Value, forest, key, lines
from tasks.views._page_data import Data, Section, point
from tasks.views._report_facts import Facts
from tasks.views._report_rows import ACCURACIES, SHORT

NAMES = {name: title.removesuffix(", %") for name, title in ACCURACIES.items()}
"""Measures that stand for accuracy, and what a reader calls them."""


@dataclass(frozen=True)
class Node:
    """A base or round in the tree."""

    facts: Facts
    colour: int | None
    accuracy: str
    look: Look | None
    note: str
    warnings: list[str]
    children: list["Node"]

    @property
    def promoted(self) -> bool | None:
        """The gates' decision; None before it."""
        return self.facts.decisions["all"][0] if "all" in self.facts.decisions else None

    @property
    def refusals(self) -> list[str]:
        """The gates that refused it, with reasons."""
        return [f"{g}: {reason}" for g, (passed, reason) in self.facts.decisions.items() if not passed and g != "all"]

    @property
    def size(self) -> int:
        """Rounds from here on."""
        return 1 + sum(child.size for child in self.children)

    @property
    def line(self) -> list["Node"]:
        """This round and those that go on from it: of several children the one with most rounds. A long campaign is a line that
        stays at its margin, and only what branches off is set in.
        """
        if not self.children:
            return [self]
        return [self, *max(self.children, key=lambda child: child.size).line]

    @property
    def branches(self) -> list["Node"]:
        """The children that do not go on in the line."""
        return [child for child in self.children if child not in self.line[1:2]]


@dataclass(frozen=True)
class Comparison:
    """Two rounds on the same items of the exam."""

    old: str
    new: str
    exams: list[outcomes.Exam]


def summary(data: Data) -> Markup:
    """The head of a page: the champions, how sure the gain is, and what to know before reading on."""
    headline = _headline(data)
    champions = [
        {"base": base, "name": e.champion, "looks": e.looks, "accuracy": headline.get(e.champion)}
        for base, e in data.elections.items()
        if base in data.names
    ]
    rounds = [(name, colour) for name, colour in data.colours.items()]
    left_out = [report.left_out_text(data.left_out)] if data.left_out else []
    return render(
        "summary.html",
        title=data.pipeline.campaign.name,
        champions=champions,
        choice=decision(data.root),
        comparisons=comparisons(data),
        notes=[*report.outdated(data.facts), *report.warnings(data.facts[-1:]), *left_out],
        rounds=rounds,
        others=len(data.names) - len(rounds),
        key=key,
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def comparisons(data: Data) -> list[Comparison]:
    """Each champion against its base, and the last evaluated round against its parent, where they are not the same pair."""
    evaluated = [f.block for f in data.facts if "evaluate" in f.stages]
    pairs = [(base, e.champion) for base, e in data.elections.items()]
    pairs += [(b.parent, b.name) for b in evaluated if b.parent][-1:]
    names = {block.name for block in evaluated}
    wanted = [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and names.issuperset(pair)]
    return [Comparison(old, new, _exams(data, old, new)) for old, new in wanted]


def _exams(data: Data, old: str, new: str) -> list[outcomes.Exam]:
    if not all(store.has(data.root, name, "evals") for name in (old, new)):
        return []
    before, after = (store.scan(data.root, name, "evals")[0] for name in (old, new))
    return [e for e in outcomes.exams(before, after, 0) if e.split == "heldout"]


def _headline(data: Data) -> dict[str, str]:
    """Round → its first accuracy with the interval, as `sampled (pass@1) 86.4 % (83.6–89.2)`."""
    cells: dict[str, str] = {}
    for facts in data.facts:
        for name, label in NAMES.items():
            cell = facts.measures.get((name, None))
            if cell is not None and cell.value is not None:
                ends = "" if cell.low is None or cell.high is None else f" ({cell.low:.1f}–{cell.high:.1f})"
                cells[facts.block.name] = f"{label} {cell.value:.1f} %{ends}"
                break
    return cells


# The tree


def tree(data: Data) -> Section:
    """Bases and rounds, each with the gates' decision, its accuracy, and why it became champion or not."""
    headline = _headline(data)
    looks = {look.name: look for e in data.elections.values() for look in e.looks}
    recipes = {row["round"]: row["recipe"] for row in data.rows("from rounds")}
    nodes: dict[str, Node] = {}
    for facts in data.facts:
        name, parent = facts.block.name, facts.block.parent
        model = f"model {facts.model[:SHORT]}" if facts.model else ""
        note = [f"{recipes.get(name)} from {parent}" if parent else "base", _state(facts), model]
        nodes[name] = Node(
            facts, data.colours.get(name), headline.get(name, ""), looks.get(name), ", ".join(filter(None, note)),
            report.warnings([facts]), [],
        )  # fmt: skip
        if parent in nodes:
            nodes[parent].children.append(nodes[name])
    roots = [n for n in nodes.values() if n.facts.block.parent not in nodes]
    return Section("rounds", "Rounds", render("tree.html", nodes=roots, key=key))


def _state(facts: Facts) -> str:
    whole = len(stages_of(facts.block))
    if facts.absent:
        return f"{len(facts.absent)} files missing"
    if facts.stale:
        return f"stale: {report.stale_text(facts.stale)}"
    return "" if len(facts.stages) == whole else f"{len(facts.stages)} of {whole} stages"


# The exam


def accuracy(data: Data) -> Section:
    """Accuracy over all levels by round, and by level where the domain has levels."""
    found = data.measured(*NAMES)
    names = [name for name in NAMES if name in found]
    if not names:
        return Section("accuracy", "Accuracy", missing="the stage evaluate measures it")
    overall = [_by_round(data, found[name], f"All levels: {NAMES[name]}") for name in names]
    by_level = [chart for name in names if (chart := _by_level(data, found[name], NAMES[name]))]
    intro = "On held-out problems that no round trains on; bars are 95 % intervals."
    return Section("accuracy", "Accuracy", render("charts.html", intro=intro, rows=[overall, by_level]))


def _by_round(data: Data, rounds: dict, title: str) -> Markup:
    rows = [
        Value(name, data.colours.get(name, 0), p)
        for name in data.names
        if (p := point(0, rounds.get(name, {}).get(None)))
    ]
    return forest(title, rows, "%")


def _by_level(data: Data, rounds: dict, label: str) -> Markup | None:
    series = []
    for name, colour in data.colours.items():
        levels = sorted(level for level in rounds.get(name, {}) if level is not None)
        points = [p for level in levels if (p := point(level, rounds[name][level]))]
        series += [Series(name, colour, points)] if points else []
    return lines(f"By level: {label}, %", series, "level", f"{label}, %") if series else None


def at_k(data: Data) -> Section:
    """pass@k for every k that the samples allow, and majority@k, of each drawn round."""
    items = data.rows("""
        from (select round, member, item, count(correct) as n, count(*) filter (correct) as c from evals
              where split = 'heldout' and mode = 'sampled' group by all)
        order by member <> 'answers', member, round, item
    """)
    member = items[0]["member"] if items else None
    counts: dict[str, list[tuple[int, int]]] = {}
    for row in items:
        if row["member"] == member:
            counts.setdefault(row["round"], []).append((row["n"], row["c"]))
    series = [s for name, colour in data.colours.items() if (s := _pass_curve(name, colour, counts.get(name, [])))]
    if not series:
        return Section("passk", "pass@k", missing="sampled answers to the held-out problems")
    charts = [lines("pass@k: one of k samples is right, %", series, "k", "pass@k, %", doubling=True)]
    majorities = data.rows("select distinct name from measures where starts_with(name, 'majority_at_')")
    found = data.measured(*(row["name"] for row in majorities))
    for name, rounds in sorted(found.items()):
        charts.append(_by_round(data, rounds, f"majority@{name.rpartition('_')[2]}: most samples are right"))
    intro = (
        "How much a model could reach by sampling (pass@k) beside what voting gets out of it (majority@k). A gain at k = 1 "
        "that is none at the largest k made likelier what the model could do already."
    )
    return Section("passk", "pass@k", render("charts.html", intro=intro, rows=[charts]))


def _pass_curve(name: str, colour: int, counts: list[tuple[int, int]]) -> Series | None:
    """Unbiased pass@k (Chen et al. 2021) at k = 1, 2, 4 … and the number of samples that most problems have."""
    if not counts:
        return None
    samples = round(average(n for n, _ in counts))
    ks = sorted({2**e for e in range(samples.bit_length())} | {samples})
    points = []
    for k in (k for k in ks if 0 < k <= samples):
        shares = [share for n, c in counts if (share := pass_at_k(n, c, k)) is not None]
        if measure := mean("", None, shares):
            points.append(Point(k, measure.value, measure.low, measure.high))
    return Series(name, colour, points) if points else None
