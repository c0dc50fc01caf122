"""Screening: which new problems are accepted, and why the others are rejected.

A rejected problem is a row whose `error` begins with the reason's name:
- `failed`: the engine gave nothing; `malformed`: the domain cannot read it;
- `duplicate`: of a problem that is in use or was just accepted;
- `contaminated`: it is an evaluation item or one of the domain's ill-posed problems, or near one.

What near means is the domain's choice (`Domain.near_duplicates`): `structure` compares `domain.structure` alone, for
templates share most of their words; `rouge` also rejects ROUGE-L F above `max_similarity` (Self-Instruct, Wang et al.
2022, arXiv:2212.10560), and any run of 13 words in common with an evaluation item (lm-evaluation-harness's convention).
Against evaluation items the limit is never above `MAX_ITEM_SIMILARITY`: a looser one would train on the exam.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import polars as pl

from tasks.core import frames, tables
from tasks.core.ids import content_id
from tasks.domains import Domain, Item
from tasks.prompts._near import Texts, ngrams

MAX_ITEM_SIMILARITY = Fraction(7, 10)
"""Largest ROUGE-L F of a prompt and an evaluation item, whatever `max_similarity` is."""


class Problem(NamedTuple):
    """A problem in use."""

    id: str
    text: str
    level: int | None
    source: str | None = "seed"
    """`seed` where a person wrote it, `model` where a model did."""


def usable(prompts: pl.LazyFrame) -> list[Problem]:
    """The problems of a table `prompts` that were accepted, by id."""
    rows = prompts.filter(pl.col("error").is_null()).select("id", "problem", "level", "source").sort("id").collect()
    return [Problem(*row) for row in rows.iter_rows()]


class Screen:
    """What new problems are compared with: evaluation items, and problems in use."""

    def __init__(self, domain: Domain, max_similarity: Fraction) -> None:
        self.structure = domain.structure
        self.free_text = domain.near_duplicates == "rouge"
        self._problems: dict[str, str] = {}
        self._items: dict[str, str] = {}
        self._item_ngrams: dict[str, str] = {}
        self._problem_texts = Texts(max_similarity)
        self._item_texts = Texts(min(max_similarity, MAX_ITEM_SIMILARITY))

    def add_item(self, split: str, problem: str) -> None:
        """Adds an evaluation item."""
        self._items.setdefault(self.structure(problem), split)
        if self.free_text:
            self._item_ngrams.update(dict.fromkeys(ngrams(problem), split))
            self._item_texts.add(split, problem)

    def add_problem(self, name: str, problem: str) -> None:
        """Adds a problem in use under its id."""
        self._problems.setdefault(self.structure(problem), name)
        if self.free_text:
            self._problem_texts.add(name, problem)

    def rejection(self, problem: str) -> str | None:
        """Why a problem cannot be used; None when it can."""
        if split := self.contaminated_split(problem):
            return f"contaminated: it is in or near {split}"
        if twin := self._problems.get(self.structure(problem)) or self._problem_texts.near(problem):
            return f"duplicate: of {twin}"
        return None

    def contaminated_split(self, problem: str) -> str | None:
        """The evaluation split that a problem is in, overlaps with (the first run of words decides), or is near to."""
        shared = (split for run in ngrams(problem) if (split := self._item_ngrams.get(run)))
        exact = self._items.get(self.structure(problem))
        return exact or next(shared, None) or self._item_texts.near(problem)


@dataclass
class Intake:
    """Screens new problems one after the other: each becomes a row, accepted or with the reason why not."""

    domain: Domain
    screen: Screen
    rows: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[Problem] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        item: Item | None,
        text: str,
        error: str | None = None,
        *,
        source: Literal["seed", "model"] = "seed",
        parents: Sequence[str] = (),
        model: str | None = None,
    ) -> None:
        """Screens a problem that was written as `text` and that the domain reads as `item`; None is one it cannot read.

        An id is a hash of the text and of how often this text occurred before: an accepted problem has the same id
        wherever and whenever it is written.
        """
        problem = item.problem if item else text
        error = error or ("malformed: the domain cannot read it" if item is None else self.screen.rejection(problem))
        name = content_id(problem, self._counts[problem])
        self._counts[problem] += 1
        level, reference = (item.level, item.reference) if item else (None, None)
        if error is None:
            self.screen.add_problem(name, problem)
            self.accepted.append(Problem(name, problem, level, source))
        prompt = self.domain.solve(problem) if item else []
        row = {"id": name, "problem": problem, "prompt": prompt, "level": level, "reference": reference, "error": error}
        self.rows.append(row | {"source": source, "parents": list(parents), "model": model})

    def table(self) -> pl.LazyFrame:
        """All rows, by id."""
        return frames.frame(tables.prompts, self.rows).sort("id")
