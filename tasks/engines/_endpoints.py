"""Endpoints that serve one model: which of them takes the next request, and when.

The least busy comes first. An endpoint takes so many requests at once and, where configured, so many tokens a minute.
One that asks for a pause (`Retry-After`) gets it. One that fails several times in a row rests while another works, longer
each time, and is then tried with a single request; when all of them fail none rests, for then it may be the requests.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tasks.core.errors import EngineError

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
    """Failures since its last answer, but for those of what was in flight when it began to rest."""
    rests_until: float = 0.0
    paused_until: float = 0.0
    """End of the pause that it requested."""
    heard: float = 0.0
    """Time of its last reply, errors included."""
    spent: deque[Spent] = field(default_factory=deque)

    def takes(self, tokens: int, now: float) -> bool:
        """Whether a request of so many tokens may be sent now."""
        return now >= self.paused_until and self.busy < self.concurrency and self._can_spend(tokens, now)

    @property
    def tired(self) -> bool:
        """Whether it has failed several times in a row."""
        return self.failures >= TIRED

    def rests(self, now: float) -> bool:
        """Whether it is tired, and not to be tried now."""
        return self.tired and (now < self.rests_until or self.busy > 0)

    def _can_spend(self, tokens: int, now: float) -> bool:
        """A request that is larger than the budget goes alone."""
        if self.tokens_per_minute is None:
            return True
        while self.spent and self.spent[0].at <= now - MINUTE:
            self.spent.popleft()
        used = sum(s.tokens for s in self.spent)
        return not used or used + tokens <= self.tokens_per_minute

    @contextmanager
    def request(self, tokens: int) -> Iterator[Spent]:
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
        """It did not answer, and requested a pause of so many seconds."""
        now = time.monotonic()
        self.heard = now if heard else self.heard
        self.paused_until = max(self.paused_until, now + pause)
        if now >= self.rests_until:
            self.failures += 1
            if self.tired:
                self.rests_until = now + min(REST * 2.0 ** min(self.failures - TIRED, 10), LONGEST)


class Endpoints:
    """All that serve the model."""

    def __init__(self, urls: Sequence[str], concurrency: int, tokens_per_minute: int | None) -> None:
        self.all = [Endpoint(url, concurrency, tokens_per_minute) for url in urls]

    async def take(self, tokens: int, longest: float, avoid: Endpoint | None = None) -> Endpoint:
        """Waits for an endpoint that takes a request of so many tokens; `avoid` only where no other does.

        Raises:
            EngineError: when all of them have requested a pause of more than `longest` seconds.
        """
        while True:
            now = time.monotonic()
            awake = [e for e in self.all if not e.rests(now)] if not all(e.tired for e in self.all) else self.all
            if free := [e for e in awake if e.takes(tokens, now)]:
                return min(free, key=lambda e: (e is avoid, e.busy, e.sent))
            if (pause := min(e.paused_until for e in self.all) - now) > longest:
                raise EngineError(
                    f"{self}: requested a pause of {pause:.0f} s, and engine.deadline is {longest:g} s; run the stage "
                    "again after that (what was answered is kept), or raise engine.deadline"
                )
            await asyncio.sleep(POLL)

    def silent_since(self, then: float) -> bool:
        """Whether none has replied since."""
        return all(e.heard < then for e in self.all)

    def __str__(self) -> str:
        return ", ".join(e.url for e in self.all)
