"""What judges that ask a model by a verdict form share: equal rows are asked about once, and opinions become rows."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal

import polars as pl

from tasks.core.ids import seed_of
from tasks.core.judging import OPINION, ORPHAN, JudgeCase, Judging, Opinion
from tasks.core.verdicts import Form, Verdict
from tasks.domains import Domain, Message
from tasks.engines import Completion, Sampling, ask

Key = tuple[Any, ...]
"""The values of a row that decide its opinion; the first is the problem."""
Texts = tuple[str, list[str]]
"""A problem and the different answers to one prompt of it, sorted."""


class Asking(Judging):
    """A judge that asks one model."""

    model: str = "parent"
    """Name of the model that judges: an ancestor's, or one of the roster."""

    def opened_models(self) -> frozenset[str]:
        """The one `model`."""
        return frozenset({self.model})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def completions(
        self, case: JudgeCase, chats: Sequence[list[Message]], sampling: Sampling, seeds: Iterable[int]
    ) -> list[Completion]:
        """The model's completion of each chat; without chats it is not loaded."""
        if not chats:
            return []
        with case.open(self.model) as policy:
            return ask(policy, chats, sampling, seeds)


def problem_rows(case: JudgeCase) -> pl.DataFrame:
    """The responses with their problems and references, in the order of their ids."""
    return (
        case.with_problems()
        .select("id", "prompt_id", "problem", "reference", "response", "answer")
        .sort("id")
        .collect()
    )


def by_content(
    case: JudgeCase, columns: Sequence[str], judge: Callable[[list[Key]], Sequence[Opinion]]
) -> pl.LazyFrame:
    """A row for each response: `judge` gives an opinion of each different combination of the columns, of which the first is
    the problem.
    """
    rows = problem_rows(case)
    keys = rows.select(columns).drop_nulls("problem").unique().sort(columns, nulls_last=True).rows()
    return opinions_frame(rows, rows.select(columns).rows(), dict(zip(keys, judge(keys), strict=True)))


def by_prompt(
    case: JudgeCase,
    judge: Callable[[list[Texts]], Sequence[dict[str, Opinion]]],
    same: Literal["response", "answer"] = "response",
) -> pl.LazyFrame:
    """A row for each response: `judge` gives an opinion of each of a prompt's different texts. With `same` "answer" one text
    stands for all responses of the prompt with that final answer.
    """
    rows = problem_rows(case)
    texts = rows["response"].to_list() if same == "response" else representatives(rows, case.seed)
    by_id: dict[tuple[str, str], set[str]] = {}
    for prompt, problem, text in zip(rows["prompt_id"], rows["problem"], texts, strict=True):
        if problem is not None:
            by_id.setdefault((prompt, problem), set()).add(text)
    judged = judge([(problem, sorted(of_prompt)) for (_, problem), of_prompt in by_id.items()])
    opinions = {(p, t): o for (p, _), by_text in zip(by_id, judged, strict=True) for t, o in by_text.items()}
    return opinions_frame(rows, zip(rows["prompt_id"], texts, strict=True), opinions)


def representatives(rows: pl.DataFrame, seed: int) -> list[str]:
    """For each row the text that stands for its final answer to its prompt; its own where it has no answer."""
    texts = rows.select("prompt_id", pl.coalesce("answer", "response"), "response").rows()
    drawn: dict[tuple[str, str], str] = {}
    for prompt, answer, text in sorted(texts, key=lambda row: seed_of(seed, "representative", row[2])):
        drawn.setdefault((prompt, answer), text)
    return [drawn[prompt, answer] for prompt, answer, _ in texts]


def opinions_frame(rows: pl.DataFrame, keys: Iterable[Hashable], opinions: dict[Any, Opinion]) -> pl.LazyFrame:
    """A judge's frame from the opinion of each row's key; a row whose key has none is without a prompt."""
    column = pl.Series("opinion", [opinions.get(key, ORPHAN) for key in keys], dtype=OPINION)
    return rows.select("prompt_id", column, response_id="id").lazy().unnest("opinion")


def verdict(completion: Completion, form: Form, domain: Domain) -> Verdict:
    """What a judge's completion says by the form; an error where it failed, or was cut off: `Steps: 1 1` may have gone on."""
    if completion.error or completion.finish_reason == "length":
        return Verdict(None, error=completion.error or "the judgment was cut off at max_tokens")
    return domain.read(form, completion.text)


def rationale(completions: Iterable[Completion]) -> str | None:
    """The first judgment's text."""
    return next((c.text for c in completions if not c.error), None)
