"""Prompts: the problems of a round. Strategies share the desk where problems arrive and are accepted or turned away.

A problem is turned away, as a row whose `error` begins with the reason's name, when it is
- `failed`: the engine gave nothing; `malformed`: the domain cannot read it;
- `duplicate`: of a problem that is in use or was just accepted;
- `contaminated`: it is an evaluation item, or near one.

What near means is the domain's to say (`Domain.near_duplicates`): `structure` compares `domain.structure` alone, for
templates share most of their words; `rouge` also refuses ROUGE-L F above `similar` (Self-Instruct, Wang et al. 2022,
arXiv:2212.10560), and any run of 13 words in common with an evaluation item (lm-evaluation-harness's convention).
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, PositiveInt
from rapidfuzz import process
from rapidfuzz.distance import Indel

from tasks import tables
from tasks.domains import Domain, Item, Split
from tasks.engines import Engine, Policy
from tasks.stage import Strategy, content_id, stage

FROZEN = 0
"""The seed of sets that are the same in every round: the seeds of the pool and the evaluation items."""
NGRAM = 13
SHARED = 6
"""Rare words that near texts must share before they are compared: more want more memory and find fewer in vain."""


@dataclass(frozen=True)
class Case:
    """What a strategy of this stage is given."""

    prompts: pl.LazyFrame
    """The parent's; a base has none."""
    responses: pl.LazyFrame
    """The parent's."""
    policy: Callable[[], AbstractContextManager[Policy]]
    """Opens the parent's model."""
    domain: Domain
    seed: int


class Screening(Strategy):
    """What strategies of this stage share: how problems are turned away. Called with a `Case`, gives `prompts`."""

    similar: float = Field(0.7, gt=0, le=1)
    """ROUGE-L F above which two free-text problems are one."""
    evaluation: dict[Split, PositiveInt] = Field({"validation": 2000, "heldout": 7000, "gold": 1000})
    """How many items of each evaluation split no prompt may equal or overlap: at least as many as are evaluated."""

    def desk(self, case: Case, known: "Iterable[Known]" = ()) -> "Desk":
        """An empty desk that knows the evaluation items and the problems already in use."""
        screen = Screen(case.domain, Fraction(str(self.similar)))
        for split, count in self.evaluation.items():
            for item in case.domain.items(split, count, FROZEN):
                screen.forbid(split, item.problem)
        for old in known:
            screen.use(old.id, old.problem)
        return Desk(case.domain, screen)


@stage(outputs=[tables.prompts])
def prompts(
    params: Screening,
    parent_prompts: pl.LazyFrame,
    parent_responses: pl.LazyFrame,
    parent_model: Path,
    engine: Engine,
    domain: Domain,
    seed: int,
    cache: Path,
) -> pl.LazyFrame:
    """New problems for the parent's model, and those that were turned away with the reason."""
    case = Case(parent_prompts, parent_responses, partial(engine.open, parent_model, cache), domain, seed)
    return params(case)


class Known(NamedTuple):
    """A problem that is in use."""

    id: str
    problem: str
    level: int | None


class Texts:
    """Texts in which near ones are found, by ROUGE-L over words, in integers: no rounding decides.

    F = 2·LCS/(n + m) for n and m words, and rapidfuzz's Indel distance is n + m − 2·LCS. Compared are only texts that
    share enough rare words (prefix filtering, Chaudhuri et al. 2006, with the longer prefixes of Wang et al. 2012): LCS
    is at most the number of words in common, so of each text's words, the rarest first, so many must be shared among
    the first few. That loses none.
    """

    def __init__(self, similar: Fraction) -> None:
        self.similar = similar
        self.names: list[str] = []
        self._coded, self._sizes = np.empty(1024, object), np.zeros(1024, np.int64)
        self._codes: dict[str, int] = {}
        self._having: dict[tuple[int, int], array[int]] = {}

    def add(self, name: str, text: str) -> None:
        """Takes in a text under a name."""
        place = len(self.names)
        if place == len(self._sizes):
            self._coded, self._sizes = np.resize(self._coded, 2 * place), np.resize(self._sizes, 2 * place)
        self.names.append(name)
        codes = self._encode(text)
        self._coded[place], self._sizes[place] = _characters(codes), len(codes)
        for word in self._rarest(codes)[0]:
            self._having.setdefault(word, array("i")).append(place)

    def near(self, text: str) -> str | None:
        """The name of the first text whose ROUGE-L F with this one is above `similar`."""
        codes = self._encode(text)
        rarest, shared = self._rarest(codes)
        having = [np.frombuffer(self._having[word], np.int32) for word in rarest if word in self._having]
        if not having:
            return None
        some = np.flatnonzero(np.bincount(np.concatenate(having)) >= shared)
        above, below = self.similar.numerator, self.similar.denominator
        total = self._sizes[some] + len(codes)
        fits = 2 * below * np.minimum(self._sizes[some], len(codes)) > above * total
        some, total = some[fits], total[fits]
        if not len(some):
            return None
        common = total - process.cdist([_characters(codes)], self._coded[some], scorer=Indel.distance)[0]
        hits = some[common * below > total * above]
        return self.names[hits[0]] if len(hits) else None

    def _rarest(self, codes: list[int]) -> tuple[list[tuple[int, int]], int]:
        """The rarest words, each with how often it came before, and how many of them a near text's must share.

        A word that was first seen late counts as rare: an order that never changes, and near enough.
        """
        above, below, size = self.similar.numerator, self.similar.denominator, len(codes)
        shortest = above * size // (2 * below - above) + 1  # fewest words of a near text
        least = above * (size + shortest) // (2 * below) + 1  # fewest words in common with a near text
        before: Counter[int] = Counter()
        words = []
        for code in codes:
            words.append((code, before[code]))
            before[code] += 1
        words.sort(reverse=True)
        shared = min(SHARED, least)
        return words[: max(0, size - least + shared)], shared

    def _encode(self, text: str) -> list[int]:
        return [self._codes.setdefault(word, len(self._codes)) for word in words(text)]


def _characters(codes: list[int]) -> str:
    """A character for each word: what rapidfuzz compares fast. Surrogates are none."""
    return "".join(chr(n if n < 0xD800 else n + 0x800) for n in codes)


class Screen:
    """What new problems are compared with."""

    def __init__(self, domain: Domain, similar: Fraction) -> None:
        self.structure = domain.structure
        self.free_text = domain.near_duplicates == "rouge"
        self.used: dict[str, str] = {}
        self.forbidden: dict[str, str] = {}
        self.forbidden_runs: dict[str, str] = {}
        self.used_texts, self.forbidden_texts = Texts(similar), Texts(similar)

    def forbid(self, split: str, problem: str) -> None:
        """Takes note of an evaluation item."""
        self.forbidden.setdefault(self.structure(problem), split)
        if self.free_text:
            self.forbidden_runs.update(dict.fromkeys(runs(problem), split))
            self.forbidden_texts.add(split, problem)

    def use(self, name: str, problem: str) -> None:
        """Takes note of a problem in use."""
        self.used.setdefault(self.structure(problem), name)
        if self.free_text:
            self.used_texts.add(name, problem)

    def objection(self, problem: str) -> str | None:
        """Why a problem cannot be used; None when it can."""
        if split := self.contaminates(problem):
            return f"contaminated: it is in or near {split}"
        if twin := self.used.get(self.structure(problem)) or self.used_texts.near(problem):
            return f"duplicate: of {twin}"
        return None

    def contaminates(self, problem: str) -> str | None:
        """The evaluation split that a problem is in, overlaps with, or is near to."""
        shared = (split for run in runs(problem) if (split := self.forbidden_runs.get(run)))
        exact = self.forbidden.get(self.structure(problem))
        return exact or next(shared, None) or self.forbidden_texts.near(problem)


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, as in Google's rouge-score, but of any script."""
    return re.findall(r"[^\W_]+", text.lower())


def runs(text: str) -> set[str]:
    """All runs of 13 words; a shorter text is one run."""
    found = words(text)
    return {" ".join(found[i : i + NGRAM]) for i in range(max(1, len(found) - NGRAM + 1))} - {""}


@dataclass
class Desk:
    """Where problems arrive: each becomes a row, accepted or with the reason why not."""

    domain: Domain
    screen: Screen
    rows: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[Known] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)

    def take(self, item: Item | None, text: str, error: str | None = None, **origin: Any) -> None:
        """Judges a problem that arrived as `text` and was read as `item`; `origin` is source, parents, model.

        An id is a hash of the text and of how often this very text came before: what is accepted has the same id
        wherever and whenever it is written.
        """
        problem = item.problem if item else text
        error = error or ("malformed: the domain cannot read it" if item is None else self.screen.objection(problem))
        name = content_id(problem, self._seen[problem])
        self._seen[problem] += 1
        level, reference = (item.level, item.reference) if item else (None, None)
        if error is None:
            self.screen.use(name, problem)
            self.accepted.append(Known(name, problem, level))
        prompt = self.domain.solve(problem) if item else []
        row = {"id": name, "problem": problem, "prompt": prompt, "level": level, "reference": reference, "error": error}
        self.rows.append(row | origin)

    def table(self) -> pl.LazyFrame:
        """All that arrived, by id."""
        return tables.frame(tables.prompts, self.rows).sort("id")
