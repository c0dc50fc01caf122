"""Answers that a round has already recorded, looked up by messages and seed: nothing is computed.

For taking the stages after `generate` apart on real data without a model, and for tests. A request that was never
recorded, or was with another sampling, is a completion with a permanent error.

The recorded tables are no dependency that DVC sees. So params.yaml pins their digest: what is answered is decided by it,
and other tables than the pinned ones are refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tasks.core.errors import EngineError
from tasks.engines import Completion, Embedded, Engine, Messages, Request, Scored, turns

WHERE = ("prompt", "seed", "member", "model")
COLUMNS = ("response", "tokens", "prompt_tokens", "finish_reason", "logprob", "entropy", "self_certainty", "error")
"""Columns of `responses` in the order of `Completion`'s fields."""


class Replay(Engine):
    """Answers from the `prompts` and `responses` that a round recorded."""

    loads: ClassVar[bool] = False
    scores: ClassVar[bool] = False

    round: str = Field(min_length=1)
    """The round whose answers are replayed."""
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of its two tables; the error for a wrong one names the right one."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Reads the tables; `model` is not needed.

        Raises:
            StoreError: when there are none, or a file is not what was written.
            EngineError: when they are not the pinned ones.
        """
        from tasks.core import store

        root = Path()  # stages run in the project's root
        scans = {name: store.scan(root, self.round, name) for name in ("prompts", "responses")}
        digest = store.digest([(name, digest) for name, (_, digest) in scans.items()])
        if digest != self.digest:
            raise EngineError(
                f"engine replay: what {self.round} recorded has the digest {digest}, but engine.digest is {self.digest}; "
                "write the new one if these answers are meant, or restore the old ones with `dvc checkout`"
            )
        prompts, responses = (scans[name][0] for name in ("prompts", "responses"))
        rows = responses.join(prompts, left_on="prompt_id", right_on="id").select(*WHERE, *COLUMNS)
        yield _Policy(self.round, rows.collect().rows(named=True), self._samplings(root))

    def _samplings(self, root: Path) -> dict[str, dict[str, Any]]:
        """How each member of the round drew its answers, by the plan of the stage that wrote them."""
        from tasks.core import store

        manifest = next(m for m in store.manifests(root, self.round).values() if "responses" in m.outputs)
        return manifest.plan.members


class _Policy:
    """Recorded answers by messages and seed."""

    def __init__(self, name: str, rows: list[dict[str, Any]], samplings: dict[str, dict[str, Any]]) -> None:
        self.digest = next((row["model"] for row in rows if row["model"]), "")
        self._name = name
        self._samplings = samplings
        self._rows = {(turns(row["prompt"]), row["seed"]): row for row in rows}

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        yield from ((i, self._answer(request)) for i, request in enumerate(requests))

    def _answer(self, request: Request) -> Completion:
        row = self._rows.get((request.messages, request.seed))
        if row is None:
            return _failed(f"not recorded: {self._name} has no response to these messages and this seed")
        sampling = asdict(request.sampling) | {"stop": list(request.sampling.stop)}  # as JSON has it
        recorded = self._samplings.get(row["member"], {})
        different = [n for n in sampling if n in recorded and sampling[n] != recorded[n]]
        if different:
            listed = ", ".join(f"{n} {sampling[n]}, not {recorded[n]}" for n in different)
            return _failed(f"not recorded: {listed} as in {self._name}; ask as it did, or take another engine")
        return _completion(row)

    def score(
        self, prompts: Sequence[Messages], completions: Sequence[str], closed: bool = False
    ) -> Iterator[tuple[int, Scored]]:
        """Raises EngineError: scores are not recorded."""
        raise EngineError("engine replay cannot score: scores are not recorded; take engine transformers")

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Embedded]]:
        """Raises EngineError: vectors are not recorded."""
        raise EngineError("engine replay cannot embed: vectors are not recorded; take engine transformers")


def _completion(row: dict[str, Any]) -> Completion:
    text, tokens, prompt_tokens, finish, *statistics = (row[name] for name in COLUMNS)
    permanent = row["error"] is not None
    return Completion(text or "", tokens or 0, prompt_tokens or 0, finish or "error", *statistics, permanent=permanent)


def _failed(why: str) -> Completion:
    return Completion("", finish_reason="error", error=why, permanent=True)
