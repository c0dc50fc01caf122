"""Answers that a round has already recorded, found by the prompt's messages and the seed: nothing is computed.

For taking the stages after `generate` apart on real data without a model, and for tests. A request that was never
recorded, or was with another sampling, is a completion with an error.

The recorded tables are no dependency that DVC sees. So params.yaml pins their digest: what is answered is decided by it,
and other tables than the pinned ones are refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tasks.engines import Completion, Engine, Messages, Request, Scored, turns
from tasks.errors import EngineError

COLUMNS = ("response", "tokens", "prompt_tokens", "finish_reason", "logprob", "entropy", "self_certainty", "error")
"""Columns of `responses` in the order of `Completion`'s fields."""


class Replay(Engine):
    """Answers from the `prompts` and `responses` that a round recorded."""

    loads: ClassVar[bool] = False
    scores: ClassVar[bool] = False

    round: str = Field(min_length=1)
    """The round whose answers are given."""
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of its two tables; a wrong one is told the right one."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Reads the tables; `model` is not needed.

        Raises:
            StoreError: when there are none, or a file is not what was written.
            EngineError: when they are not the pinned ones.
        """
        from tasks import store

        root = Path()  # stages run in the project's root
        (prompts, told), (responses, said) = (store.scan(root, self.round, n) for n in ("prompts", "responses"))
        found = store.digest([("prompts", told), ("responses", said)])
        if found != self.digest:
            raise EngineError(
                f"engine replay: what {self.round} recorded has the digest {found}, but engine.digest is {self.digest}; "
                "write the new one if these answers are meant, or restore the old ones with `dvc checkout`"
            )
        rows = responses.join(prompts, left_on="prompt_id", right_on="id").select("prompt", "seed", "model", *COLUMNS)
        yield _Policy(self.round, rows.collect().rows(named=True), self._sampling(root))

    def _sampling(self, root: Path) -> dict[str, Any]:
        """How the round drew its answers, as far as the params of the stage that wrote them say."""
        from tasks import store
        from tasks.stage import load

        manifest = next(m for m in store.manifests(root, self.round).values() if "responses" in m.outputs)
        values = dict(manifest.params.get(manifest.stage) or {})
        params = load(manifest.stage, values.pop("strategy"))(**values)
        return {name: getattr(params, name) for name in type(params).model_fields}


class _Policy:
    """Recorded answers by messages and seed."""

    def __init__(self, name: str, rows: list[dict[str, Any]], sampling: dict[str, Any]) -> None:
        self.digest = next((row["model"] for row in rows if row["model"]), "")
        self._name = name
        self._sampling = sampling
        self._answers = {(turns(row["prompt"]), row["seed"]): _completion(row) for row in rows}

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        yield from ((i, self._answer(request)) for i, request in enumerate(requests))

    def _answer(self, request: Request) -> Completion:
        asked = asdict(request.sampling)
        others = [n for n in asked if n in self._sampling and asked[n] != self._sampling[n]]
        if others:
            shown = ", ".join(f"{n} {asked[n]}, not {self._sampling[n]}" for n in others)
            return _failed(f"not recorded: {shown} as in {self._name}; ask as it did, or take another engine")
        missing = _failed(f"not recorded: {self._name} has no response to these messages and this seed")
        return self._answers.get((request.messages, request.seed), missing)

    def score(self, prompts: Sequence[Messages], completions: Sequence[str]) -> Iterator[tuple[int, Scored]]:
        raise EngineError("engine replay cannot score given text: scores are not recorded; take engine transformers")


def _completion(row: dict[str, Any]) -> Completion:
    text, tokens, prompt_tokens, finish, *statistics = (row[name] for name in COLUMNS)
    return Completion(text or "", tokens or 0, prompt_tokens or 0, finish or "error", *statistics)


def _failed(why: str) -> Completion:
    return Completion("", finish_reason="error", error=why)
