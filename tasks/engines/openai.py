"""Servers that speak OpenAI's chat completions: vLLM, SGLang, llama.cpp, `transformers serve`, a paid one.

A server answers for whatever weights it has. So the weights of a round or base are used only where `served` says under
which name the server has those of that digest: else a gate would compare a server with itself. Answers are cached by
that digest and name; those of a model of the roster, which only the server has, by its endpoints and name. Neither sees
that a server loaded other weights under an old name, another precision, or another version of its own.

One endpoint, or a pool of them that serve the same model; `_endpoints.py` says which one takes the next request. A request
that fails for a reason that may pass (busy, broken, silent, garbled) is sent again after a growing pause, to another
endpoint where there is one; after the last try it is a completion with an error. Each request has one answer, however
often it was sent.

Answers are kept in the cache one by one, as they arrive. What a server does not offer is null: entropy and
self-certainty always, log-probabilities where it ignores `logprobs` or gives another number of them than it counts tokens.
Given text can be neither scored nor embedded: chat completions have no call for it. Whether equal seeds give equal answers is the server's
to keep.

A server renders chats itself, and may read a control token that a message spells. So what looks like one of the usual (`<|…|>`, `</s>`,
`[INST]`, `<end_of_turn>`) is sent blunted, as `‹|…|>`. A reply that holds what cannot be (half a character, a negative count, a
log-probability that is no number, 16 MiB) is a row with an error.

The key comes from the environment alone, and is blotted out of whatever a server says.
"""

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tasks.core import models
from tasks.core.cache import RequestCache, key
from tasks.core.errors import EngineError, ModelRefused
from tasks.core.roster import SERVED
from tasks.engines import Completion, Embedded, Engine, Messages, Request, Scored, _wire, restored, stored
from tasks.engines._endpoints import Endpoint, Endpoints

if TYPE_CHECKING:
    from openai import AsyncOpenAI

VERSION = 2
"""Part of every cache key; raise it when an edit changes answers."""
PAUSE, LONGEST = 0.5, 30.0
"""Seconds before a request is sent a second time, which each further try doubles, and before the last ones."""
TRANSIENT = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 for which trying again helps."""
LARGEST = 2**24
"""Bytes of a reply: enough for 60,000 tokens with their log-probabilities."""
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
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1)]


class Openai(Engine):
    """Servers that speak OpenAI's chat completions, local or remote: one, or a pool of them with the same model."""

    loads: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    traces: ClassVar[bool] = True
    statistics: ClassVar[bool] = False
    transport: ClassVar[frozenset[str]] = frozenset(
        {"served", "concurrency", "tokens_per_minute", "timeout", "max_retries", "deadline", "api_key_env"}
    )

    base_url: Url = "http://127.0.0.1:8000/v1"
    """Where the server listens, `/v1` included."""
    base_urls: tuple[Url, ...] = ()
    """In the place of `base_url`, several servers of the same model, among which requests are spread."""
    model: Name | None = None
    """Name at the server of a model that the server alone has: for a model of the roster."""
    served: dict[Digest, Name] = {}
    """Name at the server of the weights of each base and round, by their digest; the error for
    weights that are missing here names theirs. It makes no stage stale, so that a round's weights can be added when they are
    there: where a name was wrong, run the stages anew with `dvc repro --force`."""
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
        """Connects on the first request.

        Raises:
            ModelRefused: when there is no such folder.
            EngineError: when no name is known under which the server has the model.
        """
        digest, name = self._pinned() if model == SERVED else self._served(model)
        with closing(RequestCache(cache)) as answers:
            yield _Policy(self, name, digest, answers)

    def _pinned(self) -> tuple[str, str]:
        """What stands for the digest of a model that only the server has, and the model's name there."""
        if self.model is None:
            raise EngineError("engine openai: engine.model is missing, the name under which the server has the model")
        return hashlib.sha256(f"{' '.join(sorted(self.urls))} {self.model}".encode()).hexdigest(), self.model

    def _served(self, model: Path) -> tuple[str, str]:
        """The digest of a folder's weights, and their name at the server."""
        folder = models.resolve(model)
        if not folder.is_dir():
            raise ModelRefused(f"{folder}: there is no such model folder")
        if (digest := models.digest(folder)) not in self.served:
            raise EngineError(
                f"engine openai: it is not known under which name the server has the weights of {model}; serve them, and "
                f"write `served: {{{digest}: NAME}}` into the engine's block"
            )
        return digest, self.served[digest]

    def problems(self) -> list[str]:
        """Endpoints that do not answer, or refuse us."""
        return [f"{url}: {problem}" for url in self.urls if (problem := self._problem(url))]

    def _problem(self, url: str) -> str | None:
        import openai

        try:
            with openai.OpenAI(base_url=url, api_key=self.secret or "none", timeout=GLANCE, max_retries=0) as client:
                _ = client.models.list().data
        except openai.APIConnectionError:
            return f"no server answers within {GLANCE:g} s; start it, or fix engine.base_url"
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            return self.refused(error.status_code)
        except openai.NotFoundError:
            return None  # some have chat completions and no list of models
        except openai.APIStatusError as error:
            return f"answers HTTP {error.status_code}; look into its log, or fix engine.base_url"
        except (openai.APIError, ValueError, TypeError, AttributeError, RecursionError):
            return "what answers there does not speak OpenAI's protocol; fix engine.base_url"
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


class TooLarge(Exception):
    """A reply of more bytes than an answer can have."""


async def bounded(response: Any) -> bytes:
    """The bytes of a reply that is still being sent.

    Raises:
        TooLarge: where there are more than `LARGEST`, or they are compressed, which was not asked for and hides their number.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise TooLarge(f"it is compressed ({encoding[:20]}), which was not asked for")
    content = bytearray()
    async for part in response.aiter_raw():
        if len(content) + len(part) > LARGEST:
            raise TooLarge(f"it is longer than {LARGEST // 2**20} MiB")
        content += part
    return bytes(content)


class _Transient(Exception):
    """A failure for which trying again may help."""

    def __init__(self, why: str, heard: bool = True, unreachable: bool = False, pause: float = 0.0) -> None:
        super().__init__(why)
        self.heard = heard
        """Whether the reply has any text."""
        self.unreachable = unreachable
        """Whether there was no connection, or it broke."""
        self.pause = pause
        """Seconds for which the server wants to be left alone."""


class _Policy:
    """A model at its endpoints."""

    def __init__(self, engine: Openai, name: str, digest: str, answers: RequestCache) -> None:
        self.digest = digest
        self._name = name
        self._engine = engine
        self._answers = answers
        self._endpoints = Endpoints(engine.urls, engine.concurrency, engine.tokens_per_minute)
        self._clients: dict[str, AsyncOpenAI] = {}

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Answers as they arrive. Raises EngineError when no server is up or one refuses us; answers so far are kept."""
        requests = [_wire.with_text_as_text(request) for request in requests]
        places: dict[bytes, list[int]] = {}
        for index, request in enumerate(requests):
            places.setdefault(self._key(request), []).append(index)
        known = self._answers.get(list(places))
        yield from ((i, restored(known[k])) for k in known for i in places[k])
        unknown = {k: requests[where[0]] for k, where in places.items() if k not in known}
        for k, completion in self._replies(unknown):
            if completion.error is None:
                self._answers.put({k: stored(completion)})
            yield from ((i, completion) for i in places[k])

    def score(
        self, prompts: Sequence[Messages], completions: Sequence[str], closed: bool = False
    ) -> Iterator[tuple[int, Scored]]:
        """Raises EngineError: the protocol has no such call."""
        raise EngineError(
            "engine openai cannot score: chat completions have no call for it; take engine transformers "
            "for the strategies that need it, or strategies that do not"
        )

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Embedded]]:
        """Raises EngineError: the protocol has no such call."""
        raise EngineError(
            "engine openai cannot embed: chat completions give no hidden states; take engine transformers for the models "
            "that embed"
        )

    def _key(self, request: Request) -> bytes:
        extra = {**self._engine.extra_body, "logprobs": self._engine.logprobs}
        seed = request.seed if request.sampling.temperature else 0
        form = _wire.form(request.sampling, self._engine.structures)
        model, forms = (self.digest, self._name), [form] if form else []
        return key("openai", VERSION, *model, extra, request.messages, request.sampling.parts, seed, *forms)

    # Sending: in a thread with an event loop, so that leaving cancels at once whatever is in flight.

    def _replies(self, requests: dict[bytes, Request]) -> Iterator[tuple[bytes, Completion]]:
        from anyio.from_thread import start_blocking_portal

        if not requests:
            return
        answers: SimpleQueue[tuple[bytes, Completion] | Exception | None] = SimpleQueue()
        with start_blocking_portal() as portal:
            portal.start_task_soon(self._send, requests, answers)
            while (item := answers.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item

    async def _send(self, requests: dict[bytes, Request], answers: SimpleQueue[Any]) -> None:
        """Puts every request's answer, as it comes; in the end None, after an error that ends it all."""
        todo = iter(requests.items())

        async def work() -> None:
            for k, request in todo:
                answers.put((k, await self._complete(request)))

        try:
            async with AsyncExitStack() as stack:
                for url in self._engine.urls:
                    self._clients[url] = await stack.enter_async_context(self._client(url))
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(len(requests), self._engine.concurrency * len(self._engine.urls))):
                        workers.create_task(work())
        except Exception as error:
            answers.put(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
        finally:
            answers.put(None)

    def _client(self, url: str) -> "AsyncOpenAI":
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        class Bounded(DefaultAsyncHttpxClient):
            async def send(self, request: Any, **options: Any) -> Any:
                response = await super().send(request, **options | {"stream": True})
                async with aclosing(response):
                    content, status = await bounded(response), response.status_code
                return type(response)(status, headers=response.headers, content=content, request=request)

        client = Bounded(headers={"Accept-Encoding": "identity"})
        key = self._engine.secret or "none"
        return AsyncOpenAI(base_url=url, api_key=key, timeout=None, max_retries=0, http_client=client)

    async def _complete(self, request: Request) -> Completion:
        """One answer, from whichever endpoint; after the last try a completion with an error."""
        tokens = _wire.size(request) // 4 + request.sampling.max_tokens
        start, endpoint, last = 0.0, None, _Transient("it was never sent")
        for attempt in range(self._engine.max_retries + 1):
            if attempt:
                await asyncio.sleep(min(PAUSE * 2.0 ** (attempt - 1), LONGEST) * random.uniform(0.5, 1.0))
            endpoint = await self._endpoints.take(tokens, self._engine.deadline, endpoint)
            start = start or time.monotonic()
            if (remaining := start + self._engine.deadline - time.monotonic()) <= 0:
                break
            try:
                return await self._try(endpoint, request, tokens, min(self._engine.timeout, remaining))
            except _Transient as failure:
                last = failure
        if last.unreachable and self._endpoints.silent_since(start):
            raise EngineError(f"{self._endpoints}: {last}")
        return _wire.failure(str(last))

    async def _try(self, endpoint: Endpoint, request: Request, tokens: int, seconds: float) -> Completion:
        """What an endpoint answers. Raises _Transient where trying again may help."""
        with endpoint.request(tokens) as spent:
            try:
                completion = await self._reply(endpoint, request, seconds)
            except _Transient as failure:
                endpoint.failed(failure.heard, failure.pause)
                raise
            endpoint.answered()
            spent.tokens = (completion.prompt_tokens + completion.tokens) or tokens
            return completion

    async def _reply(self, endpoint: Endpoint, request: Request, seconds: float) -> Completion:
        import openai

        try:
            async with asyncio.timeout(seconds):
                body = _wire.body(self._engine, self._name, request)
                reply = await self._clients[endpoint.url].chat.completions.with_raw_response.create(**body)
                return _wire.completion(reply.content, request)
        except TimeoutError:
            why = f"no answer within {seconds:g} s; raise engine.timeout or lower engine.concurrency"
            raise _Transient(why, heard=False) from None
        except TooLarge as error:
            return _wire.failure(f"the server's reply cannot be used: {error}")
        except openai.APIConnectionError:
            why = "no server answers; start it, or fix engine.base_url"
            raise _Transient(why, heard=False, unreachable=True) from None
        except UnicodeEncodeError:
            return _wire.failure("the prompt holds a lone surrogate, half of a character", permanent=True)
        except openai.APIStatusError as error:
            why = self._refusal(endpoint, error)
            if error.status_code < 500 and error.status_code not in TRANSIENT:
                return _wire.failure(
                    why, permanent="context" in error.message.lower()
                )  # a prompt that is too long for it
            raise _Transient(why, pause=_wire.pause(error.response.headers.get("retry-after", ""))) from None
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError) as error:
            why = f"the server's reply cannot be read: {type(error).__name__}: {error}"
            raise _Transient(self._blotted(why)) from None

    def _refusal(self, endpoint: Endpoint, error: Any) -> str:
        """The error in a server's reply. Raises EngineError for one that no request can pass."""
        if error.status_code in (401, 403):
            raise EngineError(f"{endpoint.url}: {self._engine.refused(error.status_code)}") from None
        if error.status_code == 404:
            raise EngineError(
                f"{endpoint.url}: has no model {self._name!r}, or no chat completions there "
                f"(HTTP 404); fix engine.served, engine.model or engine.base_url"
            ) from None
        busy = "; lower engine.concurrency or set engine.tokens_per_minute" if error.status_code == 429 else ""
        return self._blotted(f"HTTP {error.status_code}: {error.message}") + busy

    def _blotted(self, text: str) -> str:
        """The beginning of a text of the server, without our key, and without half characters, which no table holds."""
        text = text.encode("utf-8", "replace").decode()
        return (text.replace(self._engine.secret, "***") if self._engine.secret else text)[:250]
