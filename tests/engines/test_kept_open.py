"""`flywheel serve`: a server for a round, its stages that ask it, and the ways in which it ends.

vLLM is a stand-in of a few lines here: a package of that name with the same command line and the same OpenAI endpoints, which
starts a process of its own, as vLLM does. `test_vllm.py` asks the real one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tasks.core import devices, models, store
from tasks.core.cache import RequestCache
from tasks.core.errors import Busy, EngineError, FlywheelError, ModelRefused, UnknownName
from tasks.engines import Request, Sampling, _served
from tasks.engines import _vllm_server as server_file
from tasks.engines import vllm as vllm_file
from tasks.engines.transformers import Transformers
from tasks.engines.vllm import Vllm
from tasks.project import plan, serving
from tasks.project.execute import run_stage
from tasks.project.params import load_params
from tests import projects

STAND_IN = {
    "__init__.py": "",
    "envs.py": "import os\nVLLM_CACHE_ROOT = os.environ['VLLM_CACHE_ROOT']\n",
    "engine/__init__.py": "",
    "engine/arg_utils.py": """
from types import SimpleNamespace
class EngineArgs:
    def __init__(self, **values):
        self.values = values
    def create_model_config(self):
        return SimpleNamespace(dtype="torch.float32", max_model_len=self.values.get("max_model_len", 256))
""",
    "entrypoints/__init__.py": "",
    "entrypoints/openai/__init__.py": "",
    "entrypoints/openai/api_server.py": """
import argparse, json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
log = Path(os.environ["STAND_IN_LOG"])
def write(**what):
    with log.open("a") as file:
        file.write(json.dumps(what) + "\\n")
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.reply(200, {"data": [{"id": options.served_model_name}]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["model"] != options.served_model_name:
            return self.reply(404, {"error": "no such model"})
        if not body["prompt"] or max(body["prompt"]) > 9999:
            return self.reply(400, {"error": "token ids out of the vocabulary"})
        write(body=body)
        choice = {"text": f"Answer: {body.get('seed', 0) % 5}", "finish_reason": "stop", "logprobs": None}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-0.25, -0.5]}
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None, *({str(t): {"logprob": -t / 100}} for t in body["prompt"][1:])]
        self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 2}})
    def log_message(self, *_):
        pass
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host"); parser.add_argument("--port", type=int); parser.add_argument("--served-model-name")
    options, rest = parser.parse_known_args()
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write(argv=sys.argv[1:], pids=[os.getpid(), core.pid])
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
""",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    """A project of the base r0 and the round r1, whose engine is vLLM, with what r0 has."""
    root = tmp_path_factory.mktemp("kept")
    projects.make(root, rounds=1, git=False)
    for file in (root / "data/base").iterdir():
        file.unlink()
    for file in tiny_model.iterdir():
        (root / "data/base" / file.name).write_bytes(file.read_bytes())
    for name, text in STAND_IN.items():
        path = root / ".stand-in/vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def change(content):
        base = content["bases"]["r0"]
        base["engine"] = {"strategy": "vllm", "dtype": "float32", "context": 256, "stay_open": True, "max_num_seqs": 7}
        base["base"] = {
            "strategy": "local",
            "path": str(root / "data/base"),
            "digest": models.digest(root / "data/base"),
        }

    projects.rewrite(root, change)
    with inside(root):
        plan.write(Path())
        run_stage(Path(), "r0", "base")
    return root


@contextmanager
def inside(root):
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """The project as the working directory, in which nothing of r1 is made."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("PYTHONPATH", f"{made / '.stand-in'}:{made}")
    monkeypatch.syspath_prepend(made / ".stand-in")  # for what this process asks of vLLM, too
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    yield made
    serving.stop(Path())
    for name, module in list(sys.modules.items()):  # the real one, which cannot be imported twice, stays
        if name.split(".")[0] == "vllm" and ".stand-in" in str(module.__file__):
            del sys.modules[name]
    for place in ("data/round=r1", "data/cache"):
        shutil.rmtree(made / place, ignore_errors=True)


def log(key):
    """What the stand-in wrote of `key`."""
    path = Path(os.environ["STAND_IN_LOG"])
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line[key] for line in lines if key in line]


def wait(true, seconds=120.0):
    """Until something is true; what it is."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return value


def record():
    """The record of the server that is up, once it answers."""
    return wait(lambda: next((r for r in _served.records(serving.folder(Path())) if r.url), None))


def family():
    """The processes of the server: vLLM's own and its core."""
    return [pid for pids in log("pids") for pid in pids]


def are_gone(pids):
    def lives(pid):
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    return not any(map(lives, pids))


def wait_for_the_end(pids):
    """Until none of these processes is there."""
    wait(lambda: are_gone(pids), 60)


def serve(*arguments, **options):
    """`flywheel serve`, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tasks", "serve", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def test_stages_ask_the_server_and_it_ends_with_their_round(project, tmp_path):
    keeper = serve("r1")
    up, digest = record(), models.digest(Path("data/base"))
    [argv] = log("argv")
    assert argv[argv.index("--served-model-name") + 1] == up.digest == digest
    assert argv[argv.index("--max-num-seqs") + 1] == "7"
    loaded = Path(argv[argv.index("--model") + 1])
    assert loaded.resolve() == Path("data/base").resolve() and tmp_path in loaded.parents

    with pytest.raises(Busy, match="is up already"):
        serving.serve(Path(), "r1", print)
    _refuses_other_weights_and_parameters(up)

    for stage in ("prompts", "generate", "judge", "filter"):
        run_stage(Path(), "r1", stage)
    time.sleep(2 * serving.POLL)
    assert keeper.poll() is None  # critique is still to come
    run_stage(Path(), "r1", "critique")
    said = keeper.communicate(timeout=60)[0]
    assert (keeper.returncode, "ends with the round" in said) == (0, True)
    assert are_gone(family()) and not serving.is_up(Path(), "r1")

    responses = store.scan(Path(), "r1", "responses")[0].collect()
    assert set(responses["model"]) == {digest} and responses["error"].null_count() == len(responses)
    assert set(responses["logprob"]) == {-0.75}  # the filter reads them …
    bodies = log("body")
    drawn = [b for b in bodies if b["max_tokens"] == 128]
    assert {b["model"] for b in bodies} == {digest} and {b["logprobs"] for b in drawn} == {0}
    judged = [b for b in bodies if b["max_tokens"] == 192]
    assert judged and not any("logprobs" in b for b in judged)  # … and nobody those of a judgment

    told = []
    serving.serve(Path(), "r1", told.append)
    assert "nothing to serve" in told[0]


def _refuses_other_weights_and_parameters(up):
    """Those of another model in the same folder, and those that another server has at the address."""
    with pytest.raises(ModelRefused, match="context 256, not 128"):
        _served.find(serving.folder(Path()), Vllm(dtype="float32", context=128), Path("data/round=r0/model"), up.digest)
    engine, folder = serving.engine_of(Path(), serving.served_plans(Path(), "r1")[0]), Path("data/round=r0/model")
    assert _served.find(serving.folder(Path()), engine, Path("elsewhere"), "f" * 64) is None  # another model's business
    with pytest.raises(ModelRefused, match=f"{up.digest[:12]}.*ffffffffffff"):
        _served.find(serving.folder(Path()), engine, folder, "f" * 64)
    elsewhere = _served.Record(**{**vars(up), "digest": "e" * 64})
    with pytest.raises(ModelRefused, match="does not have the weights eeee"):
        _served.Server(engine, models.resolve(folder), elsewhere)


def test_answers_and_keys_are_those_of_an_engine_in_this_process(project, tmp_path):
    keeper = serve("r1")
    record()
    folder, cache = Path("data/round=r0/model"), Path("data/cache/requests")
    requests = [Request((("user", f"Tom has {n} pens."),), Sampling(max_tokens=9, trace=n == 2), n) for n in range(3)]
    engine = Vllm(dtype="float32", context=256, logprobs=False)
    with engine.open(folder, cache) as policy:
        answers = [c for _, c in sorted(policy.sample(requests))]
        assert [c.text for c in answers] == ["Answer: 0", "Answer: 1", "Answer: 2"]
        assert [(c.logprob, c.token_logprobs) for c in answers] == [(None, None), (None, None), (-0.75, (-0.25, -0.5))]
        scored = dict(policy.score([requests[0].messages], ["pens"], closed=True))[0]
        assert scored.logprobs[-1] == -0.01 and len(scored.logprobs) > 1  # the end token is number 1
        count = len(log("body"))
        assert serving._served.users(serving.folder(Path()), "r1") == 1
    assert serving._served.users(serving.folder(Path()), "r1") == 0

    class Core:
        """One in this process, which is never asked."""

        tokenizer, context, dtype, versions = policy._core.tokenizer, 256, "torch.float32", policy._core.versions

    policy = vllm_file._Policy(engine, Core(), models.resolve(folder), policy.digest, RequestCache(cache))
    assert [c for _, c in sorted(policy.sample(requests))] == answers
    assert dict(policy.score([requests[0].messages], ["pens"], closed=True))[0] == scored
    assert len(log("body")) == count

    ended = serve("--stop", "r1")
    assert "ended: r1" in ended.communicate(timeout=60)[0] and keeper.wait(10) == 128 + signal.SIGTERM
    assert are_gone(family()) and not serving.is_up(Path(), "r1")
    with pytest.raises(EngineError, match="run the stage again"):
        _served_again(engine, folder, policy)


def _served_again(engine, folder, policy):
    """A stage whose server ended while it asked."""
    gone = _served.Record("r1", str(folder), 1, 0.0, url="http://127.0.0.1:9/v1", digest=policy.digest)
    server = object.__new__(_served.Server)
    server.engine, server.folder, server.record, server._process = engine, folder, gone, None
    policy._core = server
    list(policy.sample([Request((("user", "new"),), Sampling(), 1)]))


KILLED = """
import os, sys
from pathlib import Path
from flows import serving
server = serving.start(Path(), "r1")
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.torture(
    "`kill -9` of a round that keeps a server up", "no process is left, and stages start engines of their own"
)
def test_a_killed_round_leaves_no_server(project, tries):
    for attempt in tries(10):
        flow = subprocess.Popen(
            [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        keeper = psutil.Process(int(flow.stdout.readline()))
        wait(lambda: serving.is_up(Path(), "r1"))
        if attempt % 4 == 0:  # else while it starts
            record()
        time.sleep(attempt * 0.1)
        children = keeper.children(recursive=True)
        (keeper if attempt % 4 == 1 else flow).kill()
        wait_for_the_end([keeper.pid, *(c.pid for c in children), *family()])
        flow.kill()
        flow.wait()
        assert not serving.is_up(Path(), "r1")
        assert _served.find(serving.folder(Path()), Vllm(), Path("data/round=r0/model"), "f" * 64) is None


def test_a_server_that_is_killed_ends_its_keeper_and_what_it_started(project):
    keeper = serve("r1")
    record()
    os.kill(family()[0], signal.SIGKILL)
    assert keeper.wait(60) == 75 and "died" in keeper.communicate()[0]
    wait_for_the_end(family())


def test_it_makes_room_where_another_process_waits_for_its_gpu(project, tmp_path, monkeypatch):
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '0, GPU-{tmp_path.name}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    keeper = serve("r1")
    assert record().gpus == (f"GPU-{tmp_path.name}",)
    with _served.find(serving.folder(Path()), *_opened()).used(serving.folder(Path())):
        waiting = subprocess.Popen(
            [sys.executable, "-c", "from tasks.core.devices import device_lock\nwith device_lock(): pass"]
        )
        time.sleep(3 * serving.POLL)
        assert keeper.poll() is None  # somebody asks it
    assert "makes room" in keeper.communicate(timeout=60)[0]
    assert waiting.wait(60) == 0


def _opened():
    folder = Path("data/round=r0/model")
    return Vllm(dtype="float32", context=256), folder, models.digest(folder)


def test_no_stage_finds_a_server_that_is_about_to_end(project, monkeypatch):
    found = []

    @contextmanager
    def started(engine, folder, digest, *_):
        record = _served.Record("this stage", str(folder), 0, 0.0, url="http://127.0.0.1:9/v1", digest=digest)
        yield SimpleNamespace(record=record)
        found.append(_served.records(serving.folder(Path())))

    monkeypatch.setattr(_served, "started", started)
    monkeypatch.setattr(serving, "_until_over", lambda *_: found.append(serving.is_up(Path(), "r1")) or "made")
    serving.serve(Path(), "r1", print)
    assert found == [True, []]


@pytest.mark.timeout(60)
def test_a_process_that_has_a_gpu_waits_for_no_server_that_may_want_it(tmp_path, monkeypatch):
    me = psutil.Process()
    _served.Record("r1", str(tmp_path / "model"), me.pid, me.create_time()).write(tmp_path)
    monkeypatch.setitem(devices._since, "GPU-1", 0.0)
    assert _served.find(tmp_path, Vllm(), tmp_path / "model", "a digest") is None


def test_a_round_of_another_engine_and_one_that_is_unknown_have_no_server(project, monkeypatch):
    with pytest.raises(UnknownName, match="'r9'.*r1"):
        serving.serve(Path(), "r9", print)
    with pytest.raises(FlywheelError, match="r0 is a base"):
        serving.serve(Path(), "r0", print)
    assert serving.stop(Path(), "r9") == []
    monkeypatch.setattr(serving, "engine_of", lambda *_: Transformers())
    with pytest.raises(FlywheelError, match="the engine of r1 is transformers"):
        serving.serve(Path(), "r1", print)


def test_a_stage_asks_for_log_probabilities_only_where_a_strategy_reads_them(project):
    """In this recipe the judge `logprob`, the filter, `self_judge` and `best_worst` read those of responses."""

    def asking(*settings):
        before = Path("params.yaml").read_text()
        try:
            projects.set_values(Path(), "r1", list(settings))
            made = plan.plans(Path(), load_params(Path()))
        finally:
            Path("params.yaml").write_text(before)
        return {stage for (_, stage), p in made.items() if p.engine and p.engine["logprobs"]}

    silent = ["judge.logprob=null", "judge.self_judge.likeliest=null", "pair.best_worst=null"]
    ranked = "filter.threshold.rank_by=self_consistency"
    assert asking() == {"generate"}
    assert asking(*silent) == {"generate"}  # the filter ranks by likelihood
    assert asking(*silent, ranked) == set()
    for n, _ in enumerate(silent):
        assert asking(*silent[:n], *silent[n + 1 :], ranked) == {"generate"}
    assert asking(*silent, ranked, "pair.refined={}") == {"critique"}
    assert asking(*silent, ranked, "engine.logprobs=true") >= {"generate", "judge", "critique"}
    assert asking("engine.logprobs=false") == set()


def test_settings_of_speed_make_no_stage_stale(project):
    def texts():
        return {key: p.text for key, p in plan.plans(Path(), load_params(Path())).items()}

    before, params = texts(), Path("params.yaml").read_text()
    try:
        projects.set_values(Path(), "r1", ["engine.max_num_seqs=3", "engine.data_parallel_size=2", "engine.memory=0.5"])
        assert texts() == before
        assert plan.transports(load_params(Path()))["r1"]["max_num_seqs"] == 3
        projects.set_values(Path(), "r1", ["engine.dtype=bfloat16"])
        assert texts() != before
    finally:
        Path("params.yaml").write_text(params)


def test_several_copies_are_a_server_of_the_stages_own(project, tmp_path):
    engine = Vllm(dtype="float32", context=256, data_parallel_size=2, eager=True, cudagraph_capture_sizes=(1, 8))
    with engine.open(Path("data/base"), tmp_path / "cache/requests") as policy:
        [answer] = dict(policy.sample([Request((("user", "hi"),), Sampling(max_tokens=9), 3)])).values()
    [argv] = log("argv")
    assert (answer.text, answer.logprob, argv[argv.index("--data-parallel-size") + 1]) == ("Answer: 3", -0.75, "2")
    assert argv[argv.index("--compilation-config") + 1] == '{"cudagraph_capture_sizes": [1, 8]}'
    assert Path(argv[argv.index("--model") + 1]) == Path("data/base").absolute()  # nothing is compiled
    assert are_gone(family())


def test_the_command_line_is_vllms():
    engine = Vllm(
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        cudagraph_capture_sizes=(1, 8, 64),
        data_parallel_size=2,
        eager=True,
    )
    values = {
        "model": "m", "max_num_seqs": 64, "enforce_eager": True, "enable_chunked_prefill": False,
        "compilation_config": {"cudagraph_capture_sizes": [1, 8]}, "lora_target_modules": ["a", "b"],
    }  # fmt: skip
    words = server_file.flags(values)
    assert words == [
        "--model", "m", "--max-num-seqs", "64", "--enforce-eager", "--no-enable-chunked-prefill", "--compilation-config",
        '{"cudagraph_capture_sizes": [1, 8]}', "--lora-target-modules", "a", "b",
    ]  # fmt: skip
    assert engine.transport >= {"max_num_seqs", "data_parallel_size", "cudagraph_capture_sizes"}
