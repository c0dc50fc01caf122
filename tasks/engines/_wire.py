"""OpenAI's chat completions on the wire: the body of a request, the completion in a reply, the pause in a header."""

import json
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tasks.engines import Completion, Request, Sampling

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    from tasks.engines.openai import Openai

SEEDS = 2**31
"""Seeds are sent modulo this: some servers read 32 bits."""


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


def completion(reply: "ChatCompletion", trace: bool) -> Completion:
    """The completion in a reply, with a `trace` where asked for and given. Raises ValueError, TypeError, AttributeError or LookupError when it is none."""
    choice = reply.choices[0]
    text, finish = choice.message.content, choice.finish_reason
    if not isinstance(text, str) or finish not in ("stop", "length"):
        return failure(f"the server's reply cannot be used: finish_reason {finish!r}, content {text!r}"[:250])
    per_token = [t.logprob for t in choice.logprobs.content] if choice.logprobs and choice.logprobs.content else []
    tokens = int(reply.usage.completion_tokens) if reply.usage else len(per_token)
    complete = per_token and len(per_token) == tokens  # else a mean of them would be wrong
    logprobs = tuple(map(float, per_token)) if complete else None
    return Completion(
        text.encode("utf-8", "replace").decode(),  # JSON can hold half of a character
        tokens,
        int(reply.usage.prompt_tokens) if reply.usage else 0,
        finish,
        sum(logprobs) if logprobs else None,
        token_logprobs=logprobs if trace else None,
    )


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
