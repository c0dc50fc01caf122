"""What the strategies that sample have in common: their parameters, rows of answers, and which of these are wrong."""

from typing import ClassVar

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks.core import frames, tables
from tasks.core.errors import FlywheelError
from tasks.core.stage import Ability
from tasks.domains import Domain
from tasks.engines import Requests, Sampling, sample_columns
from tasks.generate import GenerateCase, Generating


class Drawing(Generating):
    """Draws independent samples. The seed of each is a hash of (seed, strategy, model, prompt id, sample): adding prompts,
    samples or models changes none of the others.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    samples: PositiveInt = 8
    """Answers a prompt, K."""
    temperature: NonNegativeFloat = 1.0
    """0 is greedy; then more than one sample is a repetition."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus: the smallest set of tokens with this probability."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Least probability of a token, as a share of the likeliest one's."""
    max_tokens: PositiveInt = 128
    """Longest answer, in tokens."""

    @property
    def sampling(self) -> Sampling:
        """How an answer is drawn."""
        return Sampling(self.temperature, self.top_p, self.min_p, self.max_tokens)

    def salt(self, model: str) -> tuple[str, ...]:
        """What a seed holds beside the round's, so that no two strategies of a round draw alike."""
        return (self.strategy_name(), model)

    def seeds(self, case: GenerateCase, model: str) -> pl.Expr:
        """The seed of each (`prompt_id`, `sample`)."""
        return frames.seeds(pl.lit(case.seed), *map(pl.lit, self.salt(model)), "prompt_id", "sample")

    def draw(self, case: GenerateCase, model: str, prompts: pl.DataFrame, numbers: range | None = None) -> pl.DataFrame:
        """A model's answers to prompts, numbered by `numbers` (default: the first `samples`). Without prompts it is not opened."""
        return self.draw_after(case, model, prompts["id"], prompts["prompt"], numbers)

    def draw_after(
        self,
        case: GenerateCase,
        model: str,
        ids: pl.Series,
        chats: pl.Series,
        numbers: range | None = None,
        hinted: bool = False,
    ) -> pl.DataFrame:
        """A model's answers to prompts in chats of the caller's."""
        numbers = numbers or range(self.samples)
        draws = pl.select(prompt_id=ids, sample=pl.lit(list(numbers), pl.List(pl.Int64))).explode("sample")
        draws = draws.with_columns(self.seeds(case, model))
        if draws.is_empty():
            return frames.frame(tables.responses).collect()
        with case.models.open(model) as policy:
            answers = sample_columns(policy, Requests(chats, self.sampling, draws["seed"]))
            rows = pl.concat([draws, responses(answers, case.domain)], how="horizontal").lazy()
            return with_ids(rows, model, policy.digest, hinted).collect()


def with_ids(rows: pl.LazyFrame, author: str, digest: str, hinted: bool = False) -> pl.LazyFrame:
    """Rows of one model's answers with what follows from their columns."""
    rows = rows.with_columns(
        member=pl.lit(None, pl.String),
        mean_logprob=pl.when(pl.col("tokens") > 0).then(pl.col("logprob") / pl.col("tokens")),
        hinted=pl.lit(hinted),
        author=pl.lit(author),
        model=pl.lit(digest),
    )
    error = pl.col("error").fill_null("None")
    named = rows.with_columns(frames.ids("prompt_id", "model", "sample", "seed", "response", error))
    schema = frames.frame(tables.responses).collect_schema()
    return named.select(schema.names()).cast(dict(schema))


def responses(completions: pl.DataFrame, domain: Domain) -> pl.DataFrame:
    """Columns of `responses`, of those of completions."""
    texts = zip(completions["text"].to_list(), completions["error"].is_null().to_list(), strict=True)
    answers = [domain.answer(text) if ok else None for text, ok in texts]
    return completions.select(
        pl.col("text").alias("response"), pl.Series("answer", answers, pl.String), pl.exclude("text", "permanent", "n")
    )


def need_verifier(strategy: Generating, domain: Domain) -> None:
    """Refuses a domain in which no answer can be wrong.

    Raises:
        FlywheelError: for a domain without `verify`.
    """
    if type(domain).verify is Domain.verify:
        raise FlywheelError(
            f"generate: {strategy.strategy_name()!r} asks which answers are wrong, and the domain "
            f"{domain.strategy_name()!r} has no verifier; take `sample` or `ensemble`, or a domain with `verify`"
        )


def with_verdicts(rows: pl.DataFrame, case: GenerateCase) -> pl.DataFrame:
    """Answers with `passed`, as the domain's verifier says; null for one that failed, was cut off or cannot be checked."""
    problems = case.prompts.select("problem", "reference", prompt_id="id")
    joined = rows.join(problems, on="prompt_id", how="left", maintain_order="left")
    whole = joined["error"].is_null() & joined["finish_reason"].ne_missing("length")
    texts = joined.select("problem", "response", "reference").iter_rows()
    passed = [case.domain.verify(*row).passed if ok else None for row, ok in zip(texts, whole, strict=True)]
    return rows.with_columns(passed=pl.Series(passed, dtype=pl.Boolean))


def failed(rows: pl.DataFrame, case: GenerateCase, unless_right: bool = True) -> pl.DataFrame:
    """The prompts with a wrong answer; `unless_right` only those without a right one beside it. `rows` are `with_verdicts`; an
    answer that was not checked is neither right nor wrong.
    """
    tally = rows.group_by("prompt_id").agg(wrong=(~pl.col("passed")).sum(), right=pl.col("passed").sum())
    bad = tally.filter(pl.col("wrong") > 0, (pl.col("right") == 0) if unless_right else True)
    return case.prompts.filter(pl.col("id").is_in(bad["prompt_id"].implode()))
