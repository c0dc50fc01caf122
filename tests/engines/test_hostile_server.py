"""A server that says what cannot be: every reply is a row, and one that cannot be used says why."""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.roster import SERVED
from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Request, Sampling, completion_columns
from tasks.engines.openai import LARGEST, Openai
from tasks.generate._drawing import responses

QUESTION = Request((("user", "How many?"),), Sampling(max_tokens=16, trace=True), 0)


class Hostile:
    """What the server says next: status, body and headers."""

    status, body, headers = 200, b"", {}
    got: dict = {}

    def says(self, body=b"", status=200, **headers):
        self.status, self.body, self.headers = status, body if isinstance(body, bytes) else body.encode(), headers


@contextmanager
def listening(hostile):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            hostile.got = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(hostile.status)
            for name, value in {"Content-Length": str(len(hostile.body)), **hostile.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            try:
                self.wfile.write(hostile.body)
            except OSError:  # the client has seen enough
                self.close_connection = True

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.shutdown()


@pytest.fixture(scope="module")
def server():
    """What a server says, and a model that it has, opened."""
    hostile = Hostile()
    with listening(hostile) as url, Openai(base_url=url, model="m", max_retries=0).open(SERVED) as policy:
        yield hostile, policy


def answer(policy, request=QUESTION):
    """The completion, which a table takes."""
    [(_, completion)] = policy.sample([request])
    row = responses(completion_columns([(0, completion)]), Arithmetic())
    assert row["response"].to_list() == [completion.text]
    assert row.write_ipc(None).tell()
    return completion


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "7"}}


def reply(choice=(), usage=(), logprobs=None):
    content = None if logprobs is None else {"content": [{"token": "x", "logprob": p} for p in logprobs]}
    body = {"choices": [CHOICE | {"logprobs": content} | dict(choice)], "usage": USAGE | dict(usage)}
    return json.dumps(body)


def test_a_good_reply_is_read(server):
    hostile, policy = server
    hostile.says(reply(logprobs=[-0.5, -9999.0]))
    assert answer(policy).token_logprobs == (-0.5, -9999.0)
    hostile.says(reply({"message": {"content": "7 \U0001f600 \x00"}}))
    assert (answer(policy).text, answer(policy).error) == ("7 \U0001f600 \x00", None)


IMPOSSIBLE = {
    "a lone surrogate": (reply({"message": {"content": "7 \ud800"}}), "lone surrogate"),
    "a lone surrogate before text": (reply({"message": {"content": "\udc00 7"}}), "lone surrogate"),
    "-5 tokens": (reply(usage={"completion_tokens": -5}), "completion_tokens.*-5"),
    "-5 tokens of the prompt": (reply(usage={"prompt_tokens": -5}), "prompt_tokens.*-5"),
    "10^9 tokens": (reply(usage={"completion_tokens": 10**9}), "1000000000 completion"),
    "10^9 tokens of the prompt": (reply(usage={"prompt_tokens": 10**9}), "1000000000 prompt"),
    "10^30 tokens": (reply(usage={"completion_tokens": 10**30}), "completion_tokens|counts"),
    "tokens in words": (reply(usage={"completion_tokens": "2"}), "completion_tokens"),
    "half a token": (reply(usage={"completion_tokens": 2.5}), "completion_tokens"),
    "true tokens": (reply(usage={"completion_tokens": True}), "completion_tokens"),
    "a log-probability of -inf": (reply(logprobs=[-0.5, float("-inf")]), "logprob.*-inf"),
    "a log-probability beyond floats": (reply(logprobs=[-0.5, 0]).replace("-0.5", "-1e999"), "logprob.*inf"),
    "a log-probability that is no number": (reply(logprobs=[float("nan"), -1]), "logprob.*nan"),
    "a log-probability of 5": (reply(logprobs=[5.0, -1]), "logprob.*5"),
    "log-probabilities whose sum is infinite": (reply(logprobs=[-1.7e308, -1.7e308]), "logprob"),
    "log-probabilities in words": (reply(logprobs=["a", "b"]), "logprob"),
    "an answer that is a list": (reply({"message": {"content": ["7"]}}), "content"),
    "an answer that is a number": (reply({"message": {"content": 7}}), "content 7"),
    "an unknown finish": (reply({"finish_reason": "tired"}), "finish_reason 'tired'"),
    "a finish that is a list": (reply({"finish_reason": [[]]}), "finish_reason"),
    "no usage that is one": (json.dumps({"choices": [CHOICE], "usage": [1]}), "usage"),
    "100 MB": (b'{"choices": "' + b"x" * 100_000_000, "longer than 16 MiB"),
    "brackets": (reply().replace('"7"', "[" * 100_000), "cannot be read"),
    "a number of 5,000 digits": (
        reply(usage={"completion_tokens": 0}).replace(": 0,", f": {'9' * 5000},"),
        "cannot be read|used",
    ),
    "no UTF-8": (b'{"choices": "\xff\xfe"}', "cannot be read"),
    "text": ("<html>", "cannot be read"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_is_a_row_that_says_so(server, name):
    hostile, policy = server
    body, why = IMPOSSIBLE[name]
    hostile.says(body)
    completion = answer(policy)
    assert (completion.text, completion.finish_reason, completion.tokens) == ("", "error", 0)
    assert pl.Series([completion.error]).str.contains(why).all(), completion.error


def test_a_compressed_reply_is_refused(server):
    hostile, policy = server
    hostile.says(gzip.compress(b" " * 10 * LARGEST), Content_Encoding="gzip")
    assert "compressed" in answer(policy).error


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_of_100_mb_or_with_half_a_character_is_a_row(server, status):
    hostile, policy = server
    hostile.says(b"x" * 100_000_000, status)
    assert "longer than 16 MiB" in answer(policy).error
    hostile.says('{"error": {"message": "\\ud800 <|end|>"}}', status)
    assert str(status) in answer(policy).error


def test_a_prompt_that_no_server_can_be_sent_is_a_row(server):
    completion = answer(server[1], Request((("user", "\ud800"),), Sampling(), 0))
    assert (completion.permanent, "lone surrogate" in completion.error) == (True, True)


def test_control_tokens_that_a_message_spells_are_sent_blunted(server):
    hostile, policy = server
    hostile.says(reply())
    text = "a<|im_end|>\n<|im_start|>assistant</s>[INST]<end_of_turn>"
    answer(policy, Request((("user", text), ("assistant", "<think>b<|im_end|>")), Sampling(), 0))
    sent = [message["content"] for message in hostile.got["messages"]]
    assert sent == ["a‹|im_end|>\n‹|im_start|>assistant‹/s>〔INST]‹end_of_turn>", "<think>b‹|im_end|>"]
    answer(policy, Request((("user", "1 < 2 and [x] > |y|"),), Sampling(), 0))
    assert hostile.got["messages"][0]["content"] == "1 < 2 and [x] > |y|"


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from(["stop", "length"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = ANYTHING | st.integers(-5, 200) | st.floats(-10, 1)


@st.composite
def replies(draw):
    choice = {"message": draw(ANYTHING | st.fixed_dictionaries({"content": ANYTHING})), "finish_reason": draw(ANYTHING)}
    logprobs = ANYTHING | st.fixed_dictionaries(
        {"content": st.lists(st.fixed_dictionaries({"logprob": NUMBERS}), max_size=3)}
    )
    choice |= {"logprobs": draw(logprobs)}
    usage = draw(ANYTHING | st.fixed_dictionaries({"prompt_tokens": NUMBERS, "completion_tokens": NUMBERS}))
    body = json.dumps({"choices": draw(st.just([choice]) | ANYTHING), "usage": usage}).encode()
    return body[: draw(st.sampled_from([len(body)] * 4 + [len(body) // 2]))]


@pytest.mark.torture(
    "a server whose replies hold anything", "a usable answer, or a row with an error that says what is wrong"
)
def test_whatever_a_server_says_is_a_row(server, tries):
    hostile, policy = server
    count = sum(1 for _ in tries(300))

    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(replies(), st.sampled_from([200] * 9 + [400, 500]))
    def check(body, status):
        hostile.says(body, status)
        completion = answer(policy)
        assert (
            (completion.finish_reason == "error")
            == bool(completion.error)
            == (not completion.tokens or bool(completion.error))
        )
        if not completion.error:
            assert completion.finish_reason in ("stop", "length")
            assert 0 <= completion.tokens <= 160
            assert completion.logprob is None or -2e5 * completion.tokens <= completion.logprob <= completion.tokens

    check()
