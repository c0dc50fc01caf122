"""Servers that speak OpenAI's chat completions: vLLM, SGLang, llama.cpp, `transformers serve`, a paid one.

One endpoint, or a pool of them that serve the same model; `_endpoints.py` says which one takes the next request. A request
that fails for a reason that may pass (busy, broken, silent, garbled) is sent again after a growing pause, to another
endpoint where there is one; after the last try it is a completion with an error. Each request has one answer, however
often it was sent.

Answers are kept in the cache one by one, as they arrive. What a server does not offer is null: entropy and
self-certainty always, log-probabilities where it ignores `logprobs` or gives another number of them than it counts tokens.
Given text cannot be scored: chat completions have no call for it. Whether equal seeds give equal answers is the server's
to keep.

The key comes from the environment alone, and is blotted out of whatever a server says.
"""

import asyncio
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import astuple
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tasks import models
from tasks.cache import RequestCache, key
from tasks.engines import Completion, Engine, Messages, Request, Sampling, Scored
from tasks.engines._endpoints import Endpoint, Endpoints
from tasks.errors import EngineError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

VERSION = 2
"""Part of every cache key; raise it when an edit of this file changes answers."""
SEEDS = 2**31
"""Seeds are sent modulo this: some servers read 32 bits."""
PAUSE, LONGEST = 0.5, 30.0
"""Seconds before a request is sent a second time, which each further try doubles, and before the last ones."""
PASSING = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 for which trying again helps."""
GLANCE = 5.0
"""Seconds in which a server must say that it is there."""


def _endpoint(url: str) -> str:
    """Refuses what is no URL of an endpoint, without repeating it: it may hold a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"is no URL ({error}); write it as http://HOST:PORT/v1") from None
    if not parts.hostname:
        raise ValueError("names no host; write it as http://HOST:PORT/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "holds a user or password, which would be kept in git; put a key in the environment (api_key_env)"
        )
    if parts.query or parts.fragment:
        raise ValueError("has a query or fragment; end it with the path, as http://HOST:PORT/v1")
    return url


Url = Annotated[str, Field(pattern=r"^https?://.+"), AfterValidator(_endpoint)]


class Openai(Engine):
    """Servers that speak OpenAI's chat completions, local or remote: one, or a pool of them with the same model."""

    loads: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    statistics: ClassVar[bool] = False

    base_url: Url = "http://127.0.0.1:8000/v1"
    """Where the server listens, `/v1` included."""
    base_urls: tuple[Url, ...] = ()
    """In the place of `base_url`, several servers of the same model, among which requests are spread."""
    model: str
    """The model's name at the server."""
    concurrency: PositiveInt = 16
    """Requests in flight at once, for each endpoint."""
    tokens_per_minute: PositiveInt | None = None
    """Tokens of prompts and completions in any 60 seconds, for each endpoint; null is without a limit. Counted as the
    server does once it has answered; before that, a token for 4 bytes of the prompt and all of `max_tokens`.
    """
    timeout: PositiveFloat = 300.0
    """Seconds to wait for an answer, from sending to its last byte."""
    max_retries: NonNegativeInt = 4
    """Tries more, with growing pauses, when the server is busy, fails, says nothing or drops the connection."""
    deadline: PositiveFloat = 900.0
    """Seconds for a request with all its tries and pauses, from its first sending; also the longest pause that a server
    may ask for.
    """
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server that wants none needs none."""
    structures: Literal["vllm", "sglang"] | None = None
    """In whose way to ask the server to hold an answer to a form, such as a judge's verdict; null does not ask, for many
    servers refuse fields that they do not know."""
    logprobs: bool = True
    """Ask for log-probabilities; false for a server that refuses a request that does."""
    extra_body: dict[str, Any] = {}
    """More fields for every request, such as vLLM's `top_k`."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.base_urls and "base_url" in self.model_fields_set:
            raise ValueError("has both base_url and base_urls; leave one out")
        if len(set(self.base_urls)) < len(self.base_urls):
            raise ValueError("base_urls names an endpoint twice; raise concurrency to send it more requests")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """Every endpoint."""
        return self.base_urls or (self.base_url,)

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Connects on the first request. The servers have the weights; `model` only tells rounds apart in the cache."""
        served = models.digest(model) if models.resolve(model).is_dir() else ""
        digest = hashlib.sha256(f"{' '.join(sorted(self.urls))} {self.model} {served}".encode()).hexdigest()
        with closing(RequestCache(cache)) as answers:
            yield _Policy(self, digest, answers)

    def problems(self) -> list[str]:
        """Endpoints that do not answer, or refuse us."""
        return [f"{url}: {found}" for url in self.urls if (found := self._problem(url))]

    def _problem(self, url: str) -> str | None:
        import openai

        try:
            with openai.OpenAI(base_url=url, api_key=self.secret or "none", timeout=GLANCE, max_retries=0) as client:
                _ = client.models.list().data
        except openai.APIConnectionError:
            return f"no server answers within {GLANCE:g} s; start it, or mend engine.base_url"
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            return self.refused(error.status_code)
        except openai.NotFoundError:
            return None  # some have chat completions and no list of models
        except openai.APIStatusError as error:
            return f"answers HTTP {error.status_code}; look into its log, or mend engine.base_url"
        except (openai.APIError, ValueError, TypeError, AttributeError):
            return "what answers there does not speak OpenAI's protocol; mend engine.base_url"
        return None

    @property
    def secret(self) -> str:
        """The key; empty where there is none."""
        return os.environ.get(self.api_key_env, "")

    def refused(self, status: int) -> str:
        """What to do when a server wants a key, or another one."""
        if self.secret:
            return f"refuses the key (HTTP {status}); put a valid one in the environment variable {self.api_key_env}"
        return f"wants a key (HTTP {status}); put it in the environment variable {self.api_key_env}, which is not set"


class _Passing(Exception):
    """A failure for which trying again may help."""

    def __init__(self, why: str, heard: bool = True, unreachable: bool = False, pause: float = 0.0) -> None:
        super().__init__(why)
        self.heard = heard
        """Whether the server said anything."""
        self.unreachable = unreachable
        """Whether there was no connection, or it broke."""
        self.pause = pause
        """Seconds for which the server wants to be left alone."""


class _Policy:
    """A model at its endpoints."""

    def __init__(self, engine: Openai, digest: str, answers: RequestCache) -> None:
        self.digest = digest
        self._engine = engine
        self._answers = answers
        self._endpoints = Endpoints(engine.urls, engine.concurrency, engine.tokens_per_minute)
        self._clients: dict[str, AsyncOpenAI] = {}

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Answers as they arrive. Raises EngineError when no server is up or one refuses us; what came is kept."""
        places: dict[bytes, list[int]] = {}
        for index, request in enumerate(requests):
            places.setdefault(self._key(request), []).append(index)
        known = self._answers.get(list(places))
        yield from ((i, Completion(*known[k])) for k in known for i in places[k])
        unknown = {k: requests[where[0]] for k, where in places.items() if k not in known}
        for k, completion in self._ask(unknown):
            if completion.error is None:
                self._answers.put({k: astuple(completion)})
            yield from ((i, completion) for i in places[k])

    def score(self, prompts: Sequence[Messages], completions: Sequence[str]) -> Iterator[tuple[int, Scored]]:
        raise EngineError(
            "engine openai cannot score given text: chat completions have no call for it; take engine transformers "
            "for the strategies that need it, or strategies that do not"
        )

    def _key(self, request: Request) -> bytes:
        extra = {**self._engine.extra_body, "logprobs": self._engine.logprobs}
        seed = request.seed if request.sampling.temperature else 0
        form = _form(request.sampling, self._engine.structures)
        held = [form] if form else []
        return key("openai", VERSION, self.digest, extra, request.messages, astuple(request.sampling), seed, *held)

    # Sending: in a thread with an event loop, so that leaving cancels at once whatever is in flight.

    def _ask(self, requests: dict[bytes, Request]) -> Iterator[tuple[bytes, Completion]]:
        from anyio.from_thread import start_blocking_portal

        if not requests:
            return
        came: SimpleQueue[tuple[bytes, Completion] | Exception | None] = SimpleQueue()
        with start_blocking_portal() as portal:
            portal.start_task_soon(self._send, requests, came)
            while (item := came.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item

    async def _send(self, requests: dict[bytes, Request], came: SimpleQueue[Any]) -> None:
        """Puts every request's answer, as it comes; in the end None, after an error that ends it all."""
        todo = iter(requests.items())

        async def work() -> None:
            for k, request in todo:
                came.put((k, await self._complete(request)))

        try:
            async with AsyncExitStack() as stack:
                for url in self._engine.urls:
                    self._clients[url] = await stack.enter_async_context(self._client(url))
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(len(requests), self._engine.concurrency * len(self._engine.urls))):
                        workers.create_task(work())
        except Exception as error:
            came.put(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
        finally:
            came.put(None)

    def _client(self, url: str) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=url, api_key=self._engine.secret or "none", timeout=None, max_retries=0)

    async def _complete(self, request: Request) -> Completion:
        """One answer, from whichever endpoint; after the last try a completion with an error."""
        tokens = sum(len(content.encode()) for _, content in request.messages) // 4 + request.sampling.max_tokens
        begun, endpoint, last = 0.0, None, _Passing("it was never sent")
        for again in range(self._engine.max_retries + 1):
            if again:
                await asyncio.sleep(min(PAUSE * 2.0 ** (again - 1), LONGEST) * random.uniform(0.5, 1.0))
            endpoint = await self._endpoints.take(tokens, self._engine.deadline, endpoint)
            begun = begun or time.monotonic()
            if (left := begun + self._engine.deadline - time.monotonic()) <= 0:
                break
            try:
                return await self._try(endpoint, request, tokens, min(self._engine.timeout, left))
            except _Passing as failure:
                last = failure
        if last.unreachable and self._endpoints.silent_since(begun):
            raise EngineError(f"{self._endpoints}: {last}")
        return _failed(str(last))

    async def _try(self, endpoint: Endpoint, request: Request, tokens: int, seconds: float) -> Completion:
        """What an endpoint answers. Raises _Passing where trying again may help."""
        with endpoint.asked(tokens) as spent:
            try:
                came = await self._asked(endpoint, request, seconds)
            except _Passing as failure:
                endpoint.failed(failure.heard, failure.pause)
                raise
            endpoint.answered()
            spent.tokens = (came.prompt_tokens + came.tokens) or tokens
            return came

    async def _asked(self, endpoint: Endpoint, request: Request, seconds: float) -> Completion:
        import openai

        try:
            async with asyncio.timeout(seconds):
                return _read(await self._clients[endpoint.url].chat.completions.create(**self._body(request)))
        except TimeoutError:
            why = f"no answer within {seconds:g} s; raise engine.timeout or lower engine.concurrency"
            raise _Passing(why, heard=False) from None
        except openai.APIConnectionError:
            why = "no server answers; start it, or mend engine.base_url"
            raise _Passing(why, heard=False, unreachable=True) from None
        except openai.APIStatusError as error:
            why = self._said(endpoint, error)
            if error.status_code < 500 and error.status_code not in PASSING:
                return _failed(why)
            raise _Passing(why, pause=_pause(error.response.headers.get("retry-after", ""))) from None
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError) as error:
            why = f"the server's reply cannot be read: {type(error).__name__}: {error}"
            raise _Passing(self._blotted(why)) from None

    def _said(self, endpoint: Endpoint, error: Any) -> str:
        """What a server said instead of an answer. Raises EngineError for what no request can pass."""
        if error.status_code in (401, 403):
            raise EngineError(f"{endpoint.url}: {self._engine.refused(error.status_code)}") from None
        if error.status_code == 404:
            raise EngineError(
                f"{endpoint.url}: has no model {self._engine.model!r}, or no chat completions there "
                f"(HTTP 404); mend engine.model or engine.base_url"
            ) from None
        busy = "; lower engine.concurrency or set engine.tokens_per_minute" if error.status_code == 429 else ""
        return self._blotted(f"HTTP {error.status_code}: {error.message}") + busy

    def _blotted(self, text: str) -> str:
        """The beginning of a text of the server, without our key."""
        return (text.replace(self._engine.secret, "***") if self._engine.secret else text)[:250]

    def _body(self, request: Request) -> dict[str, Any]:
        how = request.sampling
        more = _form(how, self._engine.structures) | ({"min_p": how.min_p} if how.min_p else {})
        if request.messages[-1][0] == "assistant":  # vLLM's and SGLang's way to say: go on with it
            more |= {"continue_final_message": True, "add_generation_prompt": False}
        body = {
            "model": self._engine.model,
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_tokens": how.max_tokens,
            "seed": request.seed % SEEDS,
            "extra_body": {**more, **self._engine.extra_body},
        }
        return (
            body
            | ({"stop": list(how.stop)} if how.stop else {})
            | ({"logprobs": True} if self._engine.logprobs else {})
        )


def _form(how: Sampling, dialect: str | None) -> dict[str, Any]:
    """The fields that hold an answer to a JSON schema or a regular expression."""
    form: dict[str, Any] = {}
    if dialect and how.schema:
        told = {"name": "answer", "schema": json.loads(how.schema), "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": told}}
    if dialect == "vllm" and how.regex:
        form |= {"structured_outputs": {"regex": how.regex}}
    if dialect == "sglang" and how.regex:
        form |= {"regex": how.regex}
    return form


def _read(reply: "ChatCompletion") -> Completion:
    """The completion in a reply. Raises ValueError, TypeError, AttributeError or LookupError when it is none."""
    choice = reply.choices[0]
    text, finish = choice.message.content, choice.finish_reason
    if not isinstance(text, str) or finish not in ("stop", "length"):
        return _failed(f"the server's reply cannot be used: finish_reason {finish!r}, content {text!r}"[:250])
    per_token = [t.logprob for t in choice.logprobs.content] if choice.logprobs and choice.logprobs.content else []
    tokens = int(reply.usage.completion_tokens) if reply.usage else len(per_token)
    return Completion(
        text.encode("utf-8", "replace").decode(),  # JSON can hold half of a character
        tokens,
        int(reply.usage.prompt_tokens) if reply.usage else 0,
        finish,
        float(sum(per_token)) if per_token and len(per_token) == tokens else None,  # else a mean of them would be wrong
    )


def _pause(retry_after: str) -> float:
    """Seconds for which a server asks to be left alone: a number of them, or a date (RFC 9110); 0 where it does not, or
    says what is neither, such as `inf`.
    """
    try:
        pause = float(retry_after)
    except ValueError:
        pause = _until(retry_after)
    return max(0.0, pause) if math.isfinite(pause) else 0.0


def _until(date: str) -> float:
    try:
        then = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _failed(why: str) -> Completion:
    return Completion("", finish_reason="error", error=why)
