"""Endpoints that serve one model: which of them takes the next request, and when.

The least busy comes first. An endpoint takes so many requests at once and, where that is said, so many tokens a minute.
One that asks for a pause (`Retry-After`) gets it; one that fails several times in a row rests, longer each time, and then
is tried with a single request.

Code that decides nothing about an answer: an edit of this file does not make stages stale.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tasks.errors import EngineError

TIRED = 5
"""Failures in a row after which an endpoint rests."""
REST, LONGEST = 1.0, 60.0
"""Seconds of the first rest, which each further failure doubles, and of the longest one."""
MINUTE = 60.0
"""Seconds in which the budget of tokens may be spent."""
POLL = 0.05
"""Seconds between looks for an endpoint with room."""


@dataclass
class Spent:
    """Tokens of a request: an estimate when it is sent, the server's count once it has answered."""

    at: float
    tokens: int


@dataclass
class Endpoint:
    """A server, and what is known of its state. Times are those of `time.monotonic`, in seconds."""

    url: str
    concurrency: int
    """Most requests in flight."""
    tokens_per_minute: int | None = None
    busy: int = 0
    sent: int = 0
    failures: int = 0
    """Failures since its last answer that came before a rest, or after it."""
    free_at: float = 0.0
    """When its rest is over."""
    heard: float = 0.0
    """When it last replied, whatever it said."""
    spent: deque[Spent] = field(default_factory=deque)

    def takes(self, tokens: int, now: float) -> bool:
        """Whether a request of so many tokens may be sent now."""
        room = 1 if self.failures >= TIRED else self.concurrency
        return now >= self.free_at and self.busy < room and self._can_spend(tokens, now)

    def _can_spend(self, tokens: int, now: float) -> bool:
        """A request that is larger than the budget goes alone."""
        if self.tokens_per_minute is None:
            return True
        while self.spent and self.spent[0].at <= now - MINUTE:
            self.spent.popleft()
        used = sum(s.tokens for s in self.spent)
        return not used or used + tokens <= self.tokens_per_minute

    @contextmanager
    def asked(self, tokens: int) -> Iterator[Spent]:
        """While a request is in flight. Set the tokens of what it gives to what was really spent."""
        spent = Spent(time.monotonic(), tokens)
        if self.tokens_per_minute is not None:
            self.spent.append(spent)
        self.busy, self.sent = self.busy + 1, self.sent + 1
        try:
            yield spent
        finally:
            self.busy -= 1

    def answered(self) -> None:
        """It works."""
        self.failures, self.heard = 0, time.monotonic()

    def failed(self, heard: bool, pause: float = 0.0) -> None:
        """It did not give an answer; `pause` seconds were asked for."""
        now = time.monotonic()
        self.heard = now if heard else self.heard
        if now >= self.free_at:  # what was in flight when it began to rest says nothing new
            self.failures += 1
            over = self.failures - TIRED
            pause = max(pause, min(REST * 2.0 ** min(over, 10), LONGEST) if over >= 0 else 0.0)
        self.free_at = max(self.free_at, now + pause)


class Endpoints:
    """All that serve the model."""

    def __init__(self, urls: Sequence[str], concurrency: int, tokens_per_minute: int | None) -> None:
        self.all = [Endpoint(url, concurrency, tokens_per_minute) for url in urls]

    async def take(self, tokens: int, longest: float, avoid: Endpoint | None = None) -> Endpoint:
        """Waits for an endpoint that takes a request of so many tokens; `avoid` only where no other does.

        Raises:
            EngineError: when none takes one for more than `longest` seconds.
        """
        while True:
            now = time.monotonic()
            if free := [e for e in self.all if e.takes(tokens, now)]:
                return min(free, key=lambda e: (e is avoid, e.busy, e.sent))
            if (pause := min(e.free_at for e in self.all) - now) > longest:
                raise EngineError(
                    f"{self}: nothing can be sent for another {pause:.0f} s, as the server asked or because it fails, "
                    f"and engine.deadline is {longest:g} s; run the stage again after that (what was answered is kept), "
                    "or raise engine.deadline"
                )
            await asyncio.sleep(POLL)

    def silent_since(self, then: float) -> bool:
        """Whether none has replied since."""
        return all(e.heard < then for e in self.all)

    def __str__(self) -> str:
        return ", ".join(e.url for e in self.all)
