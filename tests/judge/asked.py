"""Runs one judge in its stage on answers to one problem in plain language, and keeps what it asked."""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from tasks.core import frames, roster, tables
from tasks.domains import Domain, Verdict
from tasks.engines.fake import Fake
from tasks.judge import JudgeOptions, judge

PROBLEM = "Name a prime above 10."
PROMPTS = [{"id": "p", "problem": PROBLEM, "reference": "11"}]


class Primes(Domain):
    """A domain in plain language with a verifier: an answer is its last word."""

    def answer(self, response: str) -> str | None:
        return response.split()[-1] if response.split() else None

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        last = self.answer(response) or ""
        if not last.isdecimal():
            return Verdict(None, error="no number in the answer")
        return Verdict(last == reference, None if last == reference else 2)


class Cut(Fake):
    """Whose every completion is this text, cut off at `max_tokens`."""

    text: str

    @contextmanager
    def open(self, model, cache=None):
        with super().open(model, cache) as policy:

            def sample(requests):
                for index, completion in policy.sample(requests):
                    yield index, replace(completion, text=self.text, finish_reason="length")

            yield SimpleNamespace(digest="", sample=sample)


@dataclass
class Asked:
    """The rows by response, and the prompts that were asked for."""

    prompts: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def column(self, name: str = "score") -> dict[str, Any]:
        return {id: row[name] for id, row in self.rows.items()}


def judged(member: Any, responses: list[Any], answer: Any, engine: Any = None, **context: Any) -> Asked:
    """`responses` are texts, of which the n-th gets the id n, or rows; `answer(prompt, seed)` is what the model says."""
    asked = Asked()

    def said(messages: Any, seed: int) -> str:
        asked.prompts.append(messages[-1][1])
        return answer(messages[-1][1] if len(messages) == 1 else messages, seed)

    rows = [r if isinstance(r, dict) else {"id": str(n), "response": r} for n, r in enumerate(responses, 1)]
    rows = [{"prompt_id": "p", "answer": None} | row for row in rows]
    tabled = (
        frames.frame(tables.prompts, context.pop("prompts", PROMPTS)),
        frames.frame(tables.responses, context.pop("order", list)(rows)),
    )
    context = {"models": roster.one(engine or Fake.scripted(said)), "domain": Primes(), "seed": 3} | context
    made = judge({"m": member}, JudgeOptions(reward="m"), *tabled, **context).collect()
    asked.rows = {row["response_id"]: row for row in made.iter_rows(named=True)}
    return asked


def shown(prompt: str, head: str = "A proposed answer:\n") -> str:
    """The answer that a prompt shows."""
    return prompt.partition(head)[2].partition("\n\n")[0]
