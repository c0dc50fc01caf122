import asyncio
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.core import models
from tasks.core.errors import EngineError, ModelRefused
from tasks.core.roster import SERVED
from tasks.engines import Completion, Request, Sampling
from tasks.engines import _endpoints as endpoints_file
from tasks.engines import openai as engine_file
from tasks.engines._endpoints import TIRED, Endpoint, Spent
from tasks.engines._wire import pause
from tasks.engines.openai import Openai
from tasks.engines.transformers import Transformers


def wanted(count=3, **sampling):
    return [Request((("user", f"How many? {i}"),), Sampling(**sampling), i) for i in range(count)]


def ask(engine, requests, cache=None, model=SERVED):
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


def wait(url, process, seconds=900):
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
    served = {models.digest(tiny_model): str(tiny_model)}
    there = ask(Openai(base_url=server, served=served), requests, tmp_path, tiny_model)
    assert [(c.text, c.tokens, c.prompt_tokens) for c in there] == [
        (here[i].text, here[i].tokens, here[i].prompt_tokens) for i in range(4)
    ]
    assert all(c.error is None and c.logprob is None for c in there)  # this server offers none
    off = Openai(base_url="http://127.0.0.1:9/v1", served=served, model=str(tiny_model), max_retries=0)
    assert ask(off, requests, tmp_path, tiny_model) == there  # the weights are the same wherever they are served
    with pytest.raises(EngineError, match="no server answers"):
        ask(off, requests, tmp_path)  # a model that another server has is another model


# A server that says what a test wants


@contextmanager
def replying(*replies):
    """A server that gives these (status, text) in turn, the last for ever; yields (its URL, the bodies it got)."""
    left, bodies = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.do_GET()

        def do_GET(self):
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


def logprobs_of(*logprobs):
    return {"content": [{"token": "x", "logprob": p, "top_logprobs": []} for p in logprobs]}


@pytest.mark.parametrize(
    "logprobs", [None, logprobs_of(), logprobs_of(-0.25, -0.5), logprobs_of(-0.25, -0.5, 0.0, -1.0)]
)
def test_log_probabilities_of_another_number_of_tokens_are_none(logprobs):
    with replying((200, reply(logprobs=logprobs))) as (url, _):
        for trace in (False, True):
            [answer] = ask(Openai(base_url=url, model="m"), wanted(1, trace=trace))
            assert answer == Completion("Answer: 8", 3, 5, "stop")


def test_an_answer_without_a_trace_is_not_taken_for_one_with_it(tmp_path):
    with replying((200, reply(logprobs=logprobs_of(-0.25, -0.5, 0.0)))) as (url, bodies):
        for trace in (False, True, False, True):
            [answer] = ask(Openai(base_url=url, model="m"), wanted(1, trace=trace), tmp_path)
            assert (answer.token_logprobs is not None) == trace
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("trace", [False, True])
def test_a_reply_with_log_probabilities_is_read_whole(tmp_path, trace):
    with replying((200, reply(logprobs=logprobs_of(-0.25, -0.5, 0.0)))) as (url, bodies):
        requests = wanted(1, stop=("\n",), min_p=0.1, top_p=0.9, max_tokens=7, trace=trace)
        first, cached = (ask(Openai(base_url=url, model="m"), requests, tmp_path)[0] for _ in range(2))
    traces = (-0.25, -0.5, 0.0) if trace else None
    assert first == cached == Completion("Answer: 8", 3, 5, "stop", -0.75, token_logprobs=traces)
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


SCHEMA = '{"type": "object", "properties": {"ok": {"type": "boolean"}}}'
BY_SCHEMA = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": json.loads(SCHEMA), "strict": True},
    }
}


@pytest.mark.parametrize(
    ("dialect", "by_regex", "by_schema"),
    [
        (None, {}, {}),
        ("vllm", {"structured_outputs": {"regex": "(yes|no)"}}, BY_SCHEMA),
        ("sglang", {"regex": "(yes|no)"}, BY_SCHEMA),
    ],
)
def test_an_answer_is_held_to_a_form_as_the_server_knows_it(dialect, by_regex, by_schema):
    with replying((200, reply())) as (url, bodies):
        engine = Openai(base_url=url, model="m", structures=dialect, concurrency=1)
        ask(engine, wanted(1, regex="(yes|no)") + wanted(1, schema=SCHEMA) + wanted(1))
    usual = {"messages", "model", "temperature", "top_p", "max_tokens", "seed", "logprobs"}
    forms = [{k: v for k, v in body.items() if k not in usual} for body in bodies]
    assert forms == [by_regex, by_schema, {}]


def test_an_answer_that_was_free_is_not_taken_for_one_that_is_held(tmp_path):
    with replying((200, reply())) as (url, bodies):
        for dialect in (None, "vllm", "sglang", None, "vllm", "sglang"):
            engine = Openai(base_url=url, model="m", structures=dialect)
            ask(engine, wanted(1, regex="(yes|no)") + wanted(1), tmp_path)
    assert len(bodies) == 3 + 1  # what asks for no form is the same request to all


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
]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_garbage_reply_is_a_row_with_an_error_and_is_not_cached(tmp_path, text):
    with replying((200, text), (200, reply())) as (url, _):
        engine = Openai(base_url=url, model="m", max_retries=0)
        broken = ask(engine, wanted(1), tmp_path)[0]
        assert (broken.text, broken.finish_reason) == ("", "error")
        assert "cannot be read" in broken.error
        assert ask(engine, wanted(1), tmp_path)[0].text == "Answer: 8"


@pytest.mark.parametrize("text", [reply(None), reply("x", "content_filter")])
def test_a_reply_without_an_answer_is_a_row_with_an_error_and_not_asked_for_again(text):
    with replying((200, text)) as (url, bodies):
        broken = ask(Openai(base_url=url, model="m"), wanted(1))[0]
    assert (broken.text, broken.finish_reason) == ("", "error")
    assert "cannot be used: finish_reason" in broken.error
    assert len(bodies) == 1


def test_a_busy_server_is_asked_again_and_a_failing_one_is_a_row():
    with replying((503, "{}"), (200, reply())) as (url, bodies):
        assert ask(Openai(base_url=url, model="m", max_retries=1), wanted(1))[0].text == "Answer: 8"
        assert len(bodies) == 2
    with replying((500, '{"error": "broken"}')) as (url, _):
        assert "HTTP 500" in ask(Openai(base_url=url, model="m", max_retries=0), wanted(1))[0].error


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses the key.*MY_KEY"), (403, "MY_KEY"), (404, "has no model 'm'")]
)
def test_what_no_request_can_pass_is_an_engine_error_without_the_key(monkeypatch, status, message):
    monkeypatch.setenv("MY_KEY", "very secret")
    echo = json.dumps({"error": {"message": "wrong: very secret"}})
    with replying((status, echo)) as (url, _), pytest.raises(EngineError, match=message) as caught:
        ask(Openai(base_url=url, model="m", api_key_env="MY_KEY"), wanted(1))
    assert "very secret" not in "".join(traceback.format_exception(caught.value))


def test_an_error_that_echoes_the_key_is_a_row_without_it(monkeypatch):
    monkeypatch.setenv("MY_KEY", "very secret")
    with replying((400, '{"error": {"message": "very secret is no good"}}')) as (url, bodies):
        broken = ask(Openai(base_url=url, model="m", api_key_env="MY_KEY"), wanted(1))[0].error
    assert broken.startswith("HTTP 400")
    assert "very secret" not in broken
    assert len(bodies) == 1  # what is wrong with it stays wrong


@pytest.mark.parametrize(
    ("status", "message", "permanent"),
    [(400, "This model's maximum context length is 512 tokens", True), (400, "your credit is used up", False),
     (402, "no credit", False), (500, "no context", False)],
)  # fmt: skip
def test_only_a_prompt_that_is_too_long_is_refused_for_good(status, message, permanent):
    with replying((status, json.dumps({"error": {"message": message}}))) as (url, _):
        [completion] = ask(Openai(base_url=url, model="m", max_retries=0), wanted(1))
    assert message[-9:] in completion.error
    assert completion.permanent == permanent


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with replying((401, "{}")) as (url, _), pytest.raises(EngineError, match="MY_KEY, which is not set"):
        ask(Openai(base_url=url, model="m", api_key_env="MY_KEY"), wanted(1))


def test_a_server_that_is_down_is_a_clear_error_and_loses_nothing(tmp_path):
    with replying((200, reply())) as (url, _):
        engine = Openai(base_url=url, model="m", max_retries=0)
        ask(engine, wanted(2), tmp_path)
    with pytest.raises(EngineError, match=f"{url}: no server answers; start it"):
        ask(engine, wanted(3), tmp_path)
    assert len(ask(engine, wanted(2), tmp_path)) == 2


def test_it_says_that_it_can_neither_score_nor_embed():
    assert not Openai.scores and not Openai.embeds
    with Openai(model="m").open(SERVED) as policy, pytest.raises(EngineError, match="cannot embed.*transformers"):
        policy.embed(["8"])
    with Openai(model="m").open(SERVED) as policy, pytest.raises(EngineError, match="cannot score"):
        policy.score([()], [""], closed=True)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "ftp://x/v1", "http://", "http://x:port/v1", "http://x:70000/v1", "http://me:pass@x/v1",
        "http://me@x/v1", "http://x/v1?key=1",
    ],
)  # fmt: skip
def test_an_url_is_one(url):
    for named in ({"base_url": url}, {"base_urls": ["http://y/v1", url]}):
        with pytest.raises(ValidationError, match="base_url") as caught:
            Openai(**named, model="m")
        assert "pass" not in caught.value.errors()[0]["msg"].replace("password", "")


def test_endpoints_are_named_once_and_in_one_place():
    pool = ["http://x/v1", "http://y:1/v1"]
    assert Openai(base_urls=pool, model="m").urls == tuple(pool)
    assert Openai(model="m").urls == ("http://127.0.0.1:8000/v1",)
    with pytest.raises(ValidationError, match="both base_url and base_urls"):
        Openai(base_url=pool[0], base_urls=pool, model="m")
    with pytest.raises(ValidationError, match="twice"):
        Openai(base_urls=[pool[0]] * 2, model="m")


# What doctor asks


@pytest.mark.parametrize(
    ("status", "text", "problem"),
    [
        (200, '{"object": "list", "data": []}', None),
        (404, "{}", None),
        (401, "{}", "MY_KEY, which is not set"),
        (503, "{}", "answers HTTP 503"),
        (200, "<html>hello</html>", "does not speak OpenAI's protocol"),
    ],
)
def test_problems_are_what_the_server_says(monkeypatch, status, text, problem):
    monkeypatch.delenv("MY_KEY", raising=False)
    with replying((status, text)) as (url, _):
        problems = Openai(base_url=url, model="m", api_key_env="MY_KEY").problems()
    if problem is None:
        assert problems == []
    else:
        assert len(problems) == 1 and problems[0].startswith(url) and problem in problems[0]


def test_a_dead_endpoint_is_a_problem_for_each_url():
    dead = [f"http://127.0.0.1:{free_port()}/v1" for _ in range(2)]
    problems = Openai(base_urls=dead, model="m").problems()
    assert [p.partition(": ")[0] for p in problems] == dead
    assert all("no server answers" in p for p in problems)


# Which weights a server has


@pytest.fixture
def folders(tiny_model, tmp_path):
    """The weights of a base and of a round that differs from it in one byte of a config."""
    for name in ("base", "round"):
        shutil.copytree(tiny_model, tmp_path / name)
    config = tmp_path / "round" / "generation_config.json"
    config.write_text(config.read_text() + " ")
    return tmp_path / "base", tmp_path / "round"


def test_each_folders_weights_are_asked_under_the_name_that_their_digest_has(folders, tmp_path):
    served = {models.digest(folder): folder.name for folder in folders}
    with replying((200, reply())) as (url, bodies):
        engine = Openai(base_url=url, served=served, model="teacher")
        for folder in (*folders, SERVED, *folders):
            ask(engine, wanted(1), tmp_path / "cache", folder)
            with engine.open(folder) as policy:
                assert folder == SERVED or policy.digest == models.digest(folder)
    assert [body["model"] for body in bodies] == ["base", "round", "teacher"]  # then from the cache


def test_weights_that_no_server_is_said_to_have_are_refused_with_their_digest(folders):
    base, other = folders
    engine = Openai(served={models.digest(base): "base"}, model="teacher")
    with pytest.raises(EngineError, match=f"served: {{{models.digest(other)}: "), engine.open(other):
        pass
    with pytest.raises(ModelRefused, match="absent"), engine.open(Path("absent")):
        pass


def test_another_name_for_the_same_weights_is_asked_anew(folders, tmp_path):
    digest = models.digest(folders[0])
    with replying((200, reply())) as (url, bodies):
        for name in ("whole", "quantized", "whole"):
            ask(Openai(base_url=url, served={digest: name}), wanted(1), tmp_path / "cache", folders[0])
    assert [body["model"] for body in bodies] == ["whole", "quantized"]


def test_a_model_of_the_roster_needs_its_name():
    with pytest.raises(EngineError, match=r"engine\.model"), Openai().open(SERVED):
        pass


@pytest.mark.parametrize("served", [{"r1": "r1"}, {"0" * 63: "r1"}, {"0" * 64: ""}])
def test_weights_are_named_by_their_digest(served):
    with pytest.raises(ValidationError, match="served"):
        Openai(served=served)


# Pools, before servers that fail

SLOW = 3000.0
"""Seconds that a slow answer takes: more than any test waits, however busy the machine is."""


@dataclass
class Faulty:
    """A server on several ports that answers each prompt with itself; `fault(prompt, time)` names what goes wrong."""

    fault: Callable[[str, int], str | None] = lambda prompt, time: None
    work: float = 0.0
    """Seconds that an answer takes."""
    after: str = "0.2"
    """What it says in Retry-After."""
    urls: list[str] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    by_port: Counter[int] = field(default_factory=Counter)
    busy: Counter[int] = field(default_factory=Counter)
    busiest: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
                await self.answer(json.loads(await reader.readexactly(size)), writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):  # its client or the test is over
            pass
        finally:
            writer.close()

    async def answer(self, body, writer):
        port, prompt = writer.get_extra_info("sockname")[1], body["messages"][-1]["content"]
        self.requests[prompt] += 1
        self.by_port[port] += 1
        self.times.append(time.monotonic())
        self.busy[port] += 1
        self.busiest[port] = max(self.busiest[port], self.busy[port])
        try:
            await asyncio.sleep(self.work)
            await self.put(writer, prompt, self.fault(prompt, self.requests[prompt]))
        finally:
            self.busy[port] -= 1

    async def put(self, writer, prompt, fault):
        status, text, head = 200, reply(prompt), ""
        match fault:
            case "busy":
                status, text = 429, "{}"
            case "busy, says when":
                status, text, head = 429, "{}", f"Retry-After: {self.after}\r\n"
            case "broken":
                status, text = 500, "{}"
            case "garbage":
                text = text[: len(text) // 2]
            case "slow":
                await asyncio.sleep(SLOW)
            case "drip":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nContent-Type: application/json\r\n\r\n")
                while not writer.is_closing():
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.05)
        about = f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n{head}"
        raw = f"HTTP/1.1 {status} X\r\n{about}\r\n{text}".encode()
        if fault == "half-closed":
            writer.write(raw[:-9])
            await writer.drain()
            raise ConnectionError
        writer.write(raw)
        await writer.drain()


@contextmanager
def serving(ports=1, **how):
    """The faulty server, in a thread."""
    faulty = Faulty(**how)

    async def run(task_status):
        servers = [await asyncio.start_server(faulty.serve, "127.0.0.1", 0) for _ in range(ports)]
        faulty.urls += [f"http://127.0.0.1:{s.sockets[0].getsockname()[1]}/v1" for s in servers]
        task_status.started()
        try:
            await asyncio.Event().wait()
        finally:
            for server in servers:
                server.close()

    with start_blocking_portal() as portal:
        running, _ = portal.start_task(run)
        try:
            yield faulty
        finally:
            running.cancel()


FAULTS = ("busy", "busy, says when", "broken", "garbage", "half-closed", "slow")


def sometimes(prompt, time):
    """A fault in 30 of 100 requests, the same ones in every run."""
    rng = random.Random(f"{prompt} {time}")
    return rng.choice(FAULTS) if rng.random() < 0.3 else None


@pytest.mark.timeout(900)
def test_with_faults_none_is_lost_and_none_doubled(monkeypatch):
    """`FAULTY_REQUESTS=10000 pytest tests/engines/test_openai.py -k faults` asks the full number."""
    count = int(os.environ.get("FAULTY_REQUESTS", "1000"))
    monkeypatch.setattr(engine_file, "PAUSE", 0.05)
    requests = wanted(count)
    with serving(3, fault=sometimes) as server:
        with Openai(base_urls=server.urls, model="m", concurrency=32, timeout=6).open(SERVED) as policy:
            answers = list(policy.sample(requests))
    assert sorted(i for i, _ in answers) == list(range(count))
    failed = {i for i, c in answers if c.error is not None}
    assert all(c.text == requests[i].messages[0][1] for i, c in answers if i not in failed)
    hopeless = {i for i, r in enumerate(requests) if all(sometimes(r.messages[0][1], t) for t in range(1, 6))}
    assert hopeless <= failed
    assert len(failed) <= len(hopeless) + count // 200  # a machine that stands still for 6 s fails some more
    assert server.requests.total() <= 1.5 * count
    assert min(server.by_port.values()) > 0.1 * server.requests.total()  # one that fails several times in a row rests


def test_each_endpoint_has_its_own_limit_and_the_least_busy_comes_first():
    with serving(3, work=0.05) as server:
        answers = ask(Openai(base_urls=server.urls, model="m", concurrency=4), wanted(60))
    assert all(c.error is None for c in answers)
    assert len(server.busiest) == 3
    assert all(2 <= most <= 4 for most in server.busiest.values())


def test_a_pause_that_is_asked_for_is_kept_by_all():
    with serving(1, fault=lambda _, time: "busy, says when" if len(server.times) == 1 else None, after="1") as server:
        answers = ask(Openai(base_url=server.urls[0], model="m", concurrency=1), wanted(3))
    assert all(c.error is None for c in answers)
    first, second, *_ = server.times
    assert second - first >= 1.0


def test_a_pause_beyond_the_deadline_ends_it_at_once():
    with serving(1, fault=lambda *_: "busy, says when", after="3600") as server:
        with pytest.raises(EngineError, match=r"requested a pause of 3\d\d\d s.*engine\.deadline is 60 s"):
            ask(Openai(base_url=server.urls[0], model="m", deadline=60), wanted(3))


def test_a_pause_is_seconds_or_a_date():
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert [pause(header) for header in ("2", "0.5", "-3", "", "soon")] == [2.0, 0.5, 0.0, 0.0, 0.0]
    assert 55 < pause(in_a_minute) <= 60
    assert [pause(header) for header in ("inf", "-inf", "nan", "1e999")] == [0.0] * 4


DATES = st.builds(
    "Mon, {} Jan {} {}:00:00 {:+05}".format, st.integers(0, 99), st.integers(0), st.integers(0, 99), st.integers()
)


@given(st.one_of(st.text(), DATES, st.floats().map(str), st.integers().map(str)))
def test_whatever_a_server_says_the_pause_is_finite(header):
    assert 0 <= pause(header) < math.inf


@pytest.mark.parametrize("limit", [{"timeout": 0.4}, {"deadline": 0.4}])
def test_an_answer_that_drips_in_is_late(limit):
    with serving(1, fault=lambda *_: "drip") as server:
        answers = ask(Openai(base_url=server.urls[0], model="m", max_retries=1, **limit), wanted(2))
    assert all("no answer within" in c.error for c in answers)


def test_the_work_of_a_dead_or_broken_endpoint_is_done_by_another():
    with serving(2, fault=lambda prompt, _: "broken" if "0" in prompt else None) as server, serving(1) as sound:
        dead = f"http://127.0.0.1:{free_port()}/v1"
        engine = Openai(base_urls=[dead, sound.urls[0]], model="m", concurrency=2)
        assert all(c.error is None for c in ask(engine, wanted(200)))
        assert server.requests.total() == 0
    with serving(1, fault=lambda *_: "broken") as broken, serving(1, work=0.01) as sound:
        engine = Openai(base_urls=broken.urls + sound.urls, model="m", concurrency=2)
        assert all(c.error is None for c in ask(engine, wanted(200)))
    assert TIRED <= broken.requests.total() < 30


def leaves_at_once(requests, engine, kind):
    """Whether an error of this kind ends it although requests are in flight."""
    clock = time.monotonic()
    with pytest.raises(kind):
        ask(engine, requests)
    return time.monotonic() - clock < SLOW / 10


def test_an_interrupt_waits_for_nothing():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    press = threading.Timer(1.5, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    try:
        with serving(1, fault=lambda *_: "slow") as server:
            press.start()
            assert leaves_at_once(wanted(3), Openai(base_url=server.urls[0], model="m"), KeyboardInterrupt)
    finally:
        press.cancel()
        signal.signal(signal.SIGINT, before)


def test_an_error_waits_for_nothing():
    with serving(1, fault=lambda *_: "slow") as server, replying((401, "{}")) as (url, _):
        assert leaves_at_once(wanted(8), Openai(base_urls=[server.urls[0], url], model="m"), EngineError)


# An endpoint's own books


def test_the_budget_of_tokens_holds_in_every_minute():
    endpoint = Endpoint("http://x", 10, tokens_per_minute=100)
    now = time.monotonic()
    assert endpoint.takes(500, now)  # alone, even what is too large
    with endpoint.request(90) as first, endpoint.request(10):
        assert not endpoint.takes(1, now)
        first.tokens = 40  # the server's count
        assert endpoint.takes(50, now)
        assert not endpoint.takes(51, now)
    assert not endpoint.takes(51, now + 59)
    assert endpoint.takes(100, now + 61)


def test_a_budget_slows_requests_down(monkeypatch):
    monkeypatch.setattr(endpoints_file, "MINUTE", 1.0)
    sent = []  # when they arrive is the machine's affair

    def spent(at, tokens):
        sent.append(at)
        return Spent(at, tokens)

    monkeypatch.setattr(endpoints_file, "Spent", spent)
    with serving(1) as server:  # 8 tokens each, 5 + 12 when they are sent
        engine = Openai(base_url=server.urls[0], model="m", tokens_per_minute=40)
        assert all(c.error is None for c in ask(engine, wanted(12, max_tokens=10)))
    assert len(sent) == 12
    for start in sent:
        assert sum(start <= t < start + endpoints_file.MINUTE for t in sent) <= 5


def test_an_endpoint_rests_longer_the_longer_it_fails_and_is_tried_alone(monkeypatch):
    endpoint = Endpoint("http://x", 10)
    clock = [100.0]
    monkeypatch.setattr(endpoints_file.time, "monotonic", lambda: clock[0])
    for _ in range(TIRED - 1):
        endpoint.failed(heard=True)
    assert not endpoint.rests(clock[0])
    endpoint.failed(heard=True)
    endpoint.failed(heard=True)  # was in flight
    assert endpoint.rests(clock[0] + 0.9)
    clock[0] += 1.1
    with endpoint.request(1):
        assert endpoint.rests(clock[0])  # one request at a time
    assert not endpoint.rests(clock[0])
    endpoint.failed(heard=True)
    assert endpoint.rests(clock[0] + 1.9)
    endpoint.answered()
    with endpoint.request(1):
        assert not endpoint.rests(clock[0])


def test_requests_that_break_every_server_are_rows_and_soon(monkeypatch):
    monkeypatch.setattr(engine_file, "PAUSE", 0.01)
    with serving(2, fault=lambda *_: "broken") as server:
        answers = ask(Openai(base_urls=server.urls, model="m", concurrency=4), wanted(100))
    assert {c.error[:8] for c in answers} == {"HTTP 500"}
    assert server.requests.total() == 500
