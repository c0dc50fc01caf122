"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, `transformers serve`, a paid one.

Answers are kept in the cache one by one, as they arrive. What a server does not offer is null: entropy and
self-certainty always, log-probabilities where it ignores `logprobs`. Given text cannot be scored: chat completions have
no call for it. Whether equal seeds give equal answers is the server's to keep.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tasks import models
from tasks.cache import RequestCache, key
from tasks.engines import Completion, Engine, Request, Scored
from tasks.errors import EngineError

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

VERSION = 1
"""Part of every cache key; raise it when an edit of this file changes answers."""
SEEDS = 2**31
"""Seeds are sent modulo this: some servers read 32 bits."""


class Openai(Engine):
    """A server that speaks OpenAI's chat completions, local or remote."""

    scores: ClassVar[bool] = False

    base_url: Annotated[str, Field(pattern=r"^https?://.+")] = "http://127.0.0.1:8000/v1"
    """Where the server listens, `/v1` included."""
    model: str
    """The model's name at the server."""
    concurrency: PositiveInt = 16
    """Requests in flight at once."""
    timeout: PositiveFloat = 300.0
    """Seconds to wait for an answer."""
    max_retries: NonNegativeInt = 4
    """Tries more, with growing pauses, when the server is busy, fails or drops the connection."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server that wants none needs none."""
    logprobs: bool = True
    """Ask for log-probabilities; false for a server that refuses a request that does."""
    extra_body: dict[str, Any] = {}
    """More fields for every request, such as vLLM's `top_k`."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Connects on the first request. The server has the weights; `model` only tells rounds apart in the cache."""
        from openai import OpenAI

        served = models.digest(model) if models.resolve(model).is_dir() else ""
        digest = hashlib.sha256(f"{self.base_url} {self.model} {served}".encode()).hexdigest()
        answers = RequestCache(cache)
        secret = os.environ.get(self.api_key_env) or "none"
        with OpenAI(
            base_url=self.base_url, api_key=secret, timeout=self.timeout, max_retries=self.max_retries
        ) as client:
            try:
                yield _Policy(self, client, digest, answers)
            finally:
                answers.close()


class _Policy:
    """A server and the model that it is asked for."""

    def __init__(self, engine: Openai, client: "OpenAI", digest: str, answers: RequestCache) -> None:
        self.digest = digest
        self._engine = engine
        self._client = client
        self._answers = answers

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Answers as they arrive. Raises EngineError when the server is down or refuses us; what came is kept."""
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

    def score(
        self, prompts: Sequence[tuple[tuple[str, str], ...]], completions: Sequence[str]
    ) -> Iterator[tuple[int, Scored]]:
        raise EngineError(
            "engine openai cannot score given text: chat completions have no call for it; take engine transformers "
            "for the strategies that need it, or strategies that do not"
        )

    def _key(self, request: Request) -> bytes:
        extra = {**self._engine.extra_body, "logprobs": self._engine.logprobs}
        seed = request.seed if request.sampling.temperature else 0
        return key("openai", VERSION, self.digest, extra, request.messages, astuple(request.sampling), seed)

    def _ask(self, requests: dict[bytes, Request]) -> Iterator[tuple[bytes, Completion]]:
        pool = ThreadPoolExecutor(self._engine.concurrency)
        try:
            asked = {pool.submit(self._complete, request): k for k, request in requests.items()}
            for done in as_completed(asked):
                yield asked[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _complete(self, request: Request) -> Completion:
        """One answer; a request that fails alone is a completion with an error."""
        import openai

        try:
            return _read(self._client.chat.completions.create(**self._body(request)))
        except openai.APITimeoutError:
            return _failed(f"no answer within {self._engine.timeout:g} s; raise engine.timeout or lower concurrency")
        except openai.APIConnectionError as error:
            raise EngineError(f"{self._engine.base_url}: no server answers; start it, or mend base_url") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise EngineError(
                f"{self._engine.base_url}: refuses the key (HTTP {error.status_code}); put a valid one in the "
                f"environment variable {self._engine.api_key_env}"
            ) from error
        except openai.NotFoundError as error:
            raise EngineError(
                f"{self._engine.base_url}: has no model {self._engine.model!r}, or no chat completions there "
                f"(HTTP 404); mend engine.model or engine.base_url"
            ) from error
        except openai.APIStatusError as error:
            return _failed(f"HTTP {error.status_code}: {error.message[:200]}")
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return _failed(f"the server's reply cannot be read: {type(error).__name__}: {str(error)[:200]}")

    def _body(self, request: Request) -> dict[str, Any]:
        how = request.sampling
        more = {"min_p": how.min_p} if how.min_p else {}
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


def _read(reply: "ChatCompletion") -> Completion:
    """The completion in a reply. Raises ValueError, TypeError, AttributeError or LookupError when there is none."""
    choice = reply.choices[0]
    if not isinstance(choice.message.content, str) or choice.finish_reason not in ("stop", "length"):
        raise ValueError(f"finish_reason {choice.finish_reason!r}, content {choice.message.content!r}")
    per_token = [t.logprob for t in choice.logprobs.content] if choice.logprobs and choice.logprobs.content else None
    return Completion(
        choice.message.content.encode("utf-8", "replace").decode(),  # JSON can hold half of a character
        int(reply.usage.completion_tokens) if reply.usage else len(per_token or ()),
        int(reply.usage.prompt_tokens) if reply.usage else 0,
        choice.finish_reason,
        float(sum(per_token)) if per_token else None,
    )


def _failed(why: str) -> Completion:
    return Completion("", finish_reason="error", error=why)
