"""K independent samples a prompt (repeated sampling); one at temperature 0 is the greedy answer."""

from typing import ClassVar, Literal

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks import tables
from tasks.domains import Domain
from tasks.engines import Completion, Policy, Request, Sampling, bulks
from tasks.stage import Strategy

SOME = 4096
"""Completions that are made columns at a time: as objects they are several times as large."""


class Sample(Strategy):
    """Independent samples. The seed of each is a hash of (round seed, prompt id, sample): adding prompts or samples
    changes none of the others.
    """

    needs: ClassVar[frozenset[Literal["samples", "scores"]]] = frozenset({"samples"})

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

    def __call__(self, prompts: pl.DataFrame, policy: Policy, domain: Domain, seed: int) -> pl.LazyFrame:
        """One row a sample, by prompt and sample; an answer that failed says why in `error`."""
        how = Sampling(self.temperature, self.top_p, self.min_p, self.max_tokens)
        drawn = prompts.select(prompt_id="id", sample=pl.lit(list(range(self.samples)))).explode("sample")
        drawn = drawn.with_columns(tables.seeds(pl.lit(seed), "prompt_id", "sample"))
        chats = [chat for chat in tables.chats(prompts["prompt"]) for _ in range(self.samples)]
        requests = [Request(chat, how, own) for chat, own in zip(chats, drawn["seed"].to_list(), strict=True)]
        answers = pl.concat([columns([], domain), *(columns(b, domain) for b in bulks(policy.sample(requests), SOME))])
        answers = answers.sort("n")
        rows = pl.concat([drawn[answers["n"]], answers], how="horizontal").lazy()
        rows = rows.with_columns(
            mean_logprob=pl.when(pl.col("tokens") > 0).then(pl.col("logprob") / pl.col("tokens")),
            hinted=pl.lit(False),
            model=pl.lit(policy.digest),
        )
        said = pl.col("error").fill_null("None")
        named = rows.with_columns(tables.ids("prompt_id", "model", "sample", "seed", "response", said))
        return named.select(tables.responses.schema.names)


def columns(came: list[tuple[int, Completion]], domain: Domain) -> pl.DataFrame:
    """Completions as columns of `responses`, each with the place `n` of its request."""
    completions = [completion for _, completion in came]
    given = {
        "n": [n for n, _ in came],
        "response": [c.text for c in completions],
        "answer": [None if c.error else domain.answer(c.text) for c in completions],
        "tokens": [c.tokens for c in completions],
        "prompt_tokens": [c.prompt_tokens for c in completions],
        "finish_reason": [c.finish_reason for c in completions],
        "logprob": [c.logprob for c in completions],
        "entropy": [c.entropy for c in completions],
        "self_certainty": [c.self_certainty for c in completions],
        "error": [c.error for c in completions],
    }
    kinds = tables.frame(tables.responses).collect_schema()
    return pl.DataFrame(given, schema={name: kinds.get(name, pl.Int64()) for name in given})
