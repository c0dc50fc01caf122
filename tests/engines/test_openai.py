import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.engines import Completion, Request, Sampling
from tasks.engines.openai import Openai
from tasks.engines.transformers import Transformers
from tasks.errors import EngineError

NOWHERE = Path("no/such/model")


def wanted(count=3, **sampling):
    return [Request((("user", f"How many? {i}"),), Sampling(**sampling), i) for i in range(count)]


def ask(engine, requests, cache=None, model=NOWHERE):
    with engine.open(model, cache) as policy:
        answers = dict(policy.sample(requests))
    return [answers[i] for i in range(len(requests))]


# A real server with the embedded model's architecture


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tiny_model):
    """`transformers serve`, as a user starts it."""
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", tiny_model, "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--device", "cpu", "--dtype", "float32"], env=offline, **quiet)
    try:
        wait(f"http://localhost:{port}/health", process)
        yield f"http://localhost:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def wait(url, process, seconds=120):
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} never answered")


def test_greedy_over_http_is_greedy_in_this_process(server, tiny_model, tmp_path):
    requests = wanted(4, temperature=0.0, max_tokens=20)
    with Transformers().open(tiny_model) as policy:
        here = dict(policy.sample(requests))
    there = ask(Openai(base_url=server, model=str(tiny_model)), requests, tmp_path, tiny_model)
    assert [(c.text, c.tokens, c.prompt_tokens) for c in there] == [
        (here[i].text, here[i].tokens, here[i].prompt_tokens) for i in range(4)
    ]
    assert all(c.error is None and c.logprob is None for c in there)  # this server offers none
    off = Openai(base_url="http://127.0.0.1:9/v1", model=str(tiny_model), max_retries=0)
    with pytest.raises(EngineError, match="no server answers"):
        ask(off, requests, tmp_path, tiny_model)  # another server, another model: not found in the cache


# A server that says what a test wants


@contextmanager
def replying(*replies):
    """A server that gives these (status, text) in turn, the last for ever; yields (its URL, the bodies it got)."""
    left, bodies = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1", bodies
        httpd.shutdown()


def reply(text="Answer: 8", finish="stop", **more):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}, **more}
    usage = {"completion_tokens": 3, "prompt_tokens": 5, "total_tokens": 8}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )


def test_a_reply_with_log_probabilities_is_read_whole():
    tokens = [{"token": t, "logprob": p, "top_logprobs": []} for t, p in (("Answer", -0.25), (": 8", -0.5))]
    with replying((200, reply(logprobs={"content": tokens}))) as (url, bodies):
        answer = ask(Openai(base_url=url, model="m"), wanted(1, stop=("\n",), min_p=0.1, top_p=0.9, max_tokens=7))[0]
    assert answer == Completion("Answer: 8", 3, 5, "stop", -0.75)
    assert bodies == [
        {"messages": [{"role": "user", "content": "How many? 0"}], "model": "m", "temperature": 1.0, "top_p": 0.9,
         "max_tokens": 7, "seed": 0, "stop": ["\n"], "logprobs": True, "min_p": 0.1}
    ]  # fmt: skip


def test_an_assistant_message_at_the_end_is_to_be_continued():
    begun = Request((("user", "How many?"), ("assistant", "Answer: ")), Sampling(), 2**40 + 3)
    with replying((200, reply("8"))) as (url, bodies):
        assert ask(Openai(base_url=url, model="m"), [begun])[0].text == "8"
    assert bodies[0]["continue_final_message"] is True
    assert bodies[0]["add_generation_prompt"] is False
    assert bodies[0]["seed"] == 3


def test_answers_are_cached_and_equal_requests_asked_once(tmp_path):
    with replying((200, reply())) as (url, bodies):
        engine = Openai(base_url=url, model="m", concurrency=2)
        first = ask(engine, wanted(3) + wanted(3), tmp_path)
        assert len(bodies) == 3
        assert ask(engine, wanted(3) + wanted(3), tmp_path) == first
        assert len(bodies) == 3


GARBAGE = [
    "",
    "<html>busy</html>",
    "{}",
    "[]",
    '"x"',
    '{"choices": []}',
    '{"choices": 3}',
    reply(None),
    reply("x", "content_filter"),
]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_garbage_reply_is_a_row_with_an_error_and_is_not_cached(tmp_path, text):
    with replying((200, text), (200, reply())) as (url, _):
        engine = Openai(base_url=url, model="m", max_retries=0)
        broken = ask(engine, wanted(1), tmp_path)[0]
        assert (broken.text, broken.finish_reason) == ("", "error")
        assert "cannot be read" in broken.error
        assert ask(engine, wanted(1), tmp_path)[0].text == "Answer: 8"


def test_a_busy_server_is_asked_again_and_a_failing_one_is_a_row():
    with replying((503, "{}"), (200, reply())) as (url, bodies):
        assert ask(Openai(base_url=url, model="m", max_retries=1), wanted(1))[0].text == "Answer: 8"
        assert len(bodies) == 2
    with replying((500, '{"error": "broken"}')) as (url, _):
        assert "HTTP 500" in ask(Openai(base_url=url, model="m", max_retries=0), wanted(1))[0].error


@pytest.mark.parametrize(("status", "message"), [(401, "MY_KEY"), (403, "MY_KEY"), (404, "has no model 'm'")])
def test_what_no_request_can_pass_is_an_engine_error_without_the_key(monkeypatch, status, message):
    monkeypatch.setenv("MY_KEY", "very secret")
    with replying((status, "{}")) as (url, _), pytest.raises(EngineError, match=message) as caught:
        ask(Openai(base_url=url, model="m", api_key_env="MY_KEY"), wanted(1))
    assert "very secret" not in str(caught.value)


def test_a_server_that_is_down_is_a_clear_error_and_loses_nothing(tmp_path):
    with replying((200, reply())) as (url, _):
        engine = Openai(base_url=url, model="m", max_retries=0)
        ask(engine, wanted(2), tmp_path)
    with pytest.raises(EngineError, match=f"{url}: no server answers; start it"):
        ask(engine, wanted(3), tmp_path)
    assert len(ask(engine, wanted(2), tmp_path)) == 2


def test_it_says_that_it_cannot_score():
    assert not Openai.scores
    with Openai(model="m").open(NOWHERE) as policy, pytest.raises(EngineError, match="cannot score"):
        policy.score([()], [""])


def test_an_url_is_one():
    with pytest.raises(ValidationError, match="base_url"):
        Openai(base_url="localhost:8000", model="m")
