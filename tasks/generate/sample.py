"""K independent samples a prompt (repeated sampling); one at temperature 0 is the greedy answer."""

from typing import Any, ClassVar, Literal, NamedTuple

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks import tables
from tasks.domains import Domain
from tasks.engines import Completion, Policy, Request, Sampling
from tasks.stage import Strategy, content_id, seed_of


class Draw(NamedTuple):
    """One answer wanted."""

    prompt_id: str
    sample: int
    request: Request


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
        asked = [
            (prompt_id, tuple((m["role"], m["content"]) for m in messages))
            for prompt_id, messages in prompts.select("id", "prompt").iter_rows()
        ]
        draws = [
            Draw(prompt_id, k, Request(messages, how, seed_of(seed, prompt_id, k)))
            for prompt_id, messages in asked
            for k in range(self.samples)
        ]
        came = policy.sample([d.request for d in draws])
        # of a generator polars makes columns chunk by chunk, so that few rows are Python objects at a time
        rows = (row(draws[index], completion, domain, policy.digest) for index, completion in came)
        schema = tables.frame(tables.responses).collect_schema()
        return pl.DataFrame(rows, schema=schema).lazy().sort("prompt_id", "sample")


def row(draw: Draw, came: Completion, domain: Domain, model: str) -> dict[str, Any]:
    """A completion as a row of `responses`."""
    mean = came.logprob / came.tokens if came.logprob is not None and came.tokens else None
    return {
        "id": content_id(draw.prompt_id, model, draw.sample, draw.request.seed, came.text, came.error),
        "prompt_id": draw.prompt_id,
        "sample": draw.sample,
        "seed": draw.request.seed,
        "response": came.text,
        "answer": None if came.error else domain.answer(came.text),
        "tokens": came.tokens,
        "prompt_tokens": came.prompt_tokens,
        "finish_reason": came.finish_reason,
        "logprob": came.logprob,
        "mean_logprob": mean,
        "entropy": came.entropy,
        "self_certainty": came.self_certainty,
        "hinted": False,
        "model": model,
        "error": came.error,
    }
