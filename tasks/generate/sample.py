"""K independent samples a prompt (repeated sampling); one at temperature 0 is the greedy answer."""

from typing import ClassVar

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks.core import frames, tables
from tasks.core.stage import Ability
from tasks.domains import Domain
from tasks.engines import Completion, Policy, Request, Sampling, batched
from tasks.generate import GenerateCase, Generating

BATCH = 4096
"""Completions that are made columns at a time: as objects they are several times as large."""


class Sample(Generating):
    """Independent samples. The seed of each is a hash of (seed, prompt id, sample): adding prompts or samples changes none
    of the others.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    model: str = "parent"
    """Which model answers: an ancestor (`parent`, `base`, `anchor`, `grandparent`) or a model of the roster."""
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

    def opened_models(self) -> frozenset[str]:
        """The model that answers."""
        return frozenset({self.model})

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """One row a sample, by prompt and sample; an answer that failed says why in `error`."""
        draws = case.prompts.select(prompt_id="id", sample=pl.lit(list(range(self.samples)))).explode("sample")
        draws = draws.with_columns(frames.seeds(pl.lit(case.seed), "prompt_id", "sample"))
        with case.models.open(self.model) as policy:
            answers = self._answers(policy, case, draws["seed"]).sort("n")
            rows = pl.concat([draws[answers["n"]], answers], how="horizontal").lazy()
            return _with_ids(rows, policy.digest)

    def _answers(self, policy: Policy, case: GenerateCase, seeds: pl.Series) -> pl.DataFrame:
        sampling = Sampling(self.temperature, self.top_p, self.min_p, self.max_tokens)
        chats = [chat for chat in frames.chats(case.prompts["prompt"]) for _ in range(self.samples)]
        requests = [Request(chat, sampling, seed) for chat, seed in zip(chats, seeds.to_list(), strict=True)]
        batches = batched(policy.sample(requests), BATCH)
        return pl.concat([columns([], case.domain), *(columns(b, case.domain) for b in batches)])


def _with_ids(rows: pl.LazyFrame, digest: str) -> pl.LazyFrame:
    rows = rows.with_columns(
        member=pl.lit(None, pl.String),
        mean_logprob=pl.when(pl.col("tokens") > 0).then(pl.col("logprob") / pl.col("tokens")),
        hinted=pl.lit(False),
        model=pl.lit(digest),
    )
    error = pl.col("error").fill_null("None")
    named = rows.with_columns(frames.ids("prompt_id", "model", "sample", "seed", "response", error))
    return named.select(tables.responses.schema.names)


def columns(completions: list[tuple[int, Completion]], domain: Domain) -> pl.DataFrame:
    """Completions as columns of `responses`, each with the place `n` of its request."""
    values = [completion for _, completion in completions]
    data = {
        "n": [n for n, _ in completions],
        "response": [c.text for c in values],
        "answer": [None if c.error else domain.answer(c.text) for c in values],
        "tokens": [c.tokens for c in values],
        "prompt_tokens": [c.prompt_tokens for c in values],
        "finish_reason": [c.finish_reason for c in values],
        "logprob": [c.logprob for c in values],
        "entropy": [c.entropy for c in values],
        "self_certainty": [c.self_certainty for c in values],
        "error": [c.error for c in values],
    }
    types = frames.frame(tables.responses).collect_schema()
    return pl.DataFrame(data, schema={name: types.get(name, pl.Int64()) for name in data})
