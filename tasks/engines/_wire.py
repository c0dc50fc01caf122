"""OpenAI's chat completions on the wire: the body of a request, the completion in a reply, the pause in a header."""

import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from tasks.core.verdicts import BLUNT, TAG
from tasks.engines import Completion, Request, Sampling

if TYPE_CHECKING:
    from tasks.engines.openai import Openai

SEEDS = 2**31
"""Seeds are sent modulo this: some servers read 32 bits."""
MOST, HIDDEN = 10, 2**20
"""How many times the tokens asked for, or the bytes sent, a server may count (some count hidden thoughts), and how many tokens
it may have put before a prompt."""
Logprob = Annotated[float, Field(ge=-1e5, le=1e-2)]
"""Some say -9999 for what is next to impossible, and round what is certain to a little more than 0."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
THOUGHT = re.compile("</?think>")


def body(engine: "Openai", name: str, request: Request) -> dict[str, Any]:
    """The arguments of the client's call, for the model that the server has as `name`."""
    how = request.sampling
    extra = form(how, engine.structures) | ({"min_p": how.min_p} if how.min_p else {})
    if request.messages[-1][0] == "assistant":  # vLLM's and SGLang's way to say: go on with it
        extra |= {"continue_final_message": True, "add_generation_prompt": False}
    fields = {
        "model": name,
        "messages": [{"role": role, "content": content} for role, content in request.messages],
        "temperature": how.temperature,
        "top_p": how.top_p,
        "max_tokens": how.max_tokens,
        "seed": request.seed % SEEDS,
        "extra_body": {**extra, **engine.extra_body},
    }
    return fields | ({"stop": list(how.stop)} if how.stop else {}) | ({"logprobs": True} if engine.logprobs else {})


def form(how: Sampling, dialect: str | None) -> dict[str, Any]:
    """The fields that hold an answer to a JSON schema or a regular expression."""
    fields: dict[str, Any] = {}
    if dialect and how.schema:
        schema = {"name": "answer", "schema": json.loads(how.schema), "strict": True}
        fields = {"response_format": {"type": "json_schema", "json_schema": schema}}
    if dialect == "vllm" and how.regex:
        fields |= {"structured_outputs": {"regex": how.regex}}
    if dialect == "sglang" and how.regex:
        fields |= {"regex": how.regex}
    return fields


class _Read(BaseModel):
    """Parts of a reply that are used; numbers are numbers in JSON, and finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Token(_Read):
    """One of the answer."""

    logprob: Logprob


class Logprobs(_Read):
    """Of an answer's tokens."""

    content: list[Token] | None = None


class Message(_Read):
    """What was answered: a text, if all is well."""

    content: Any = None


class Choice(_Read):
    """An answer."""

    message: Message
    finish_reason: Any = None
    logprobs: Logprobs | None = None


class Usage(_Read):
    """Tokens, as the server counts them."""

    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class Reply(_Read):
    """A chat completion."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None


def completion(content: bytes, request: Request) -> Completion:
    """The completion in the body of a reply, with a trace where asked for and given; one with an error where a reply holds what
    cannot be: another try would bring it again. Raises ValueError when it is no reply.
    """
    try:
        reply = Reply.model_validate_json(content)
    except ValidationError as error:
        if why := impossible(error, content):
            return failure(f"the server's reply cannot be used: {why}"[:250])
        raise ValueError(problem(error)) from None
    choice, usage = reply.choices[0], reply.usage
    text, finish = choice.message.content, choice.finish_reason
    if not isinstance(text, str) or finish not in ("stop", "length"):
        return failure(f"the server's reply cannot be used: finish_reason {finish!r}, content {text!r}"[:250])
    per_token = [token.logprob for token in choice.logprobs.content or ()] if choice.logprobs else []
    tokens, prompt_tokens = (usage.completion_tokens, usage.prompt_tokens) if usage else (len(per_token), 0)
    if tokens > MOST * request.sampling.max_tokens or prompt_tokens > MOST * size(request) + HIDDEN:
        why = f"{tokens} completion and {prompt_tokens} prompt tokens, of {request.sampling.max_tokens} that were asked for"
        return failure(
            f"the server's reply cannot be used: it counts {why} and {size(request)} bytes that were sent"[:250]
        )
    logprobs = tuple(per_token) if per_token and len(per_token) == tokens else None  # else a mean would be wrong
    return Completion(
        text, tokens, prompt_tokens, finish, sum(logprobs) if logprobs else None,
        token_logprobs=logprobs if request.sampling.trace else None,
    )  # fmt: skip


def impossible(error: ValidationError, content: bytes) -> str | None:
    """What cannot be in a reply that is one: a number out of its range, half of a character. None where it is no reply."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return (
            "it holds a lone surrogate, half of a character"
            if SURROGATE.search(content) and _is_json(content)
            else None
        )
    return problem(error) if {"usage", "logprobs"} & set(first["loc"]) else None


def problem(error: ValidationError) -> str:
    """The first of a reply's faults, with its place and value."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}, not {str(first['input'])[:60]!r}" if place else first["msg"]


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def size(request: Request) -> int:
    """Bytes of a request's messages."""
    return sum(len(content.encode("utf-8", "surrogatepass")) for _, content in request.messages)


def with_text_as_text(request: Request) -> Request:
    """The request with control tokens that a message spells blunted, as in a text that is judged (`‹|im_end|>`): which ones
    the server's template would read is not known. A model's own thoughts stay as they are where it goes on with them.
    """
    messages = tuple(
        [(role, TAG.sub(_blunt if role != "assistant" else _blunt_others, text)) for role, text in request.messages]
    )
    return request if messages == request.messages else replace(request, messages=messages)


def _blunt(tag: re.Match[str]) -> str:
    return BLUNT[tag[0]]


def _blunt_others(tag: re.Match[str]) -> str:
    return tag[0] if THOUGHT.match(tag.string, tag.start()) else BLUNT[tag[0]]


def failure(why: str, permanent: bool = False) -> Completion:
    """A completion with an error."""
    return Completion("", finish_reason="error", error=why, permanent=permanent)


def pause(retry_after: str) -> float:
    """Seconds for which a server asks to be left alone: a number of them, or a date (RFC 9110); 0 where it does not, or
    says what is neither, such as `inf`.
    """
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = _until(retry_after)
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _until(date: str) -> float:
    try:
        then = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
