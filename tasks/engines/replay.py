"""Answers that a round has already recorded, found by the prompt's messages and the seed: nothing is computed.

For taking the stages after `generate` apart on real data without a model, and for tests. A request that was never
recorded is a completion with an error.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.engines import Completion, Engine, Request, Scored
from tasks.errors import EngineError

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("response", "tokens", "prompt_tokens", "finish_reason", "logprob", "entropy", "self_certainty", "error")
"""Columns of `responses` in the order of `Completion`'s fields."""


class Replay(Engine):
    """Answers from the `prompts` and `responses` that a round recorded."""

    scores: ClassVar[bool] = False

    folder: str
    """The round's folder, such as `data/round=r1`."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Reads the tables; `model` is not needed. Raises EngineError when there are none."""
        rows = self._table("responses").join(self._table("prompts"), left_on="prompt_id", right_on="id")
        yield _Policy(rows.select("prompt", "seed", "model", *COLUMNS).rows(named=True))

    def _table(self, name: str) -> "pl.DataFrame":
        import polars as pl

        parts = sorted((Path(self.folder) / name).glob("*.parquet"))
        if not parts:
            raise EngineError(f"{self.folder}/{name}: nothing is recorded there; set engine.folder to a round that ran")
        wanted = ("id", "prompt") if name == "prompts" else ("prompt_id", "seed", "model", *COLUMNS)
        return pl.concat([pl.read_parquet(part, columns=list(wanted)) for part in parts])


class _Policy:
    """Recorded answers by messages and seed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.digest = next((row["model"] for row in rows if row["model"]), "")
        self._answers = {(_messages(row["prompt"]), row["seed"]): _completion(row) for row in rows}

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        missing = Completion("", finish_reason="error", error="not recorded: no response to these messages and seed")
        yield from ((i, self._answers.get((r.messages, r.seed), missing)) for i, r in enumerate(requests))

    def score(
        self, prompts: Sequence[tuple[tuple[str, str], ...]], completions: Sequence[str]
    ) -> Iterator[tuple[int, Scored]]:
        raise EngineError("engine replay cannot score given text: scores are not recorded; take engine transformers")


def _messages(chat: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((turn["role"], turn["content"]) for turn in chat)


def _completion(row: dict[str, Any]) -> Completion:
    text, tokens, prompt_tokens, finish, *statistics = (row[name] for name in COLUMNS)
    return Completion(text or "", tokens or 0, prompt_tokens or 0, finish or "error", *statistics)
