"""Bad input: each gets one clear message and an exit code that is not 0, and nothing already made is lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import projects
import pytest
from filelock import FileLock

from tasks import store
from tasks.__main__ import app, guarded

pytestmark = pytest.mark.xdist_group("campaign")
FLYWHEEL = Path(sys.executable).parent / "flywheel"


@pytest.fixture
def flywheel(monkeypatch, capsys):
    """Runs a command in this process: its exit code, and what it said."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["flywheel", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            guarded(app)
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err

    return run


@pytest.fixture
def refused(flywheel):
    """Runs a command that must fail with one message, which holds all of `says`; nothing that was made may change."""

    def run(*arguments: str, says: list[str], code: int = 1) -> None:
        before = projects.digests(Path())
        found, said = flywheel(*arguments)
        assert found == code, said
        assert "Traceback" not in said
        assert said.count("flywheel: ") == 1
        for part in says:
            assert part in said, said
        assert projects.digests(Path()) == before

    return run


def assign(*edits: str) -> None:
    """Writes values into params.yaml, valid or not: `rounds.r2.seed=3`."""

    def change(content) -> None:
        for edit in edits:
            path, value = edit.split("=", 1)
            *parents, last = path.split(".")
            at = content
            for key in parents:
                at = at[key]
            at[last] = projects.YAML(typ="safe").load(value)

    projects.rewrite(Path(), change)


PARAMS = {
    "rounds.r2.judge.panel.verfier={}": "rounds.r2.judge.panel.verfier: there is no judge strategy 'verfier'; did you mean 'verifier'?",
    "rounds.r2.filter.strategy=treshold": "rounds.r2.filter: there is no filter strategy 'treshold'; did you mean 'threshold'?",
    "rounds.r2.engine.strategy=vlm": "rounds.r2.engine: there is no engine 'vlm'; ",
    "rounds.r2.filter.leest=1": "rounds.r2.filter.leest: unknown key; did you mean 'least'",
    "rounds.r2.parent=r11": "rounds.r2.parent: there is no base or round 'r11'; did you mean 'r1'",
    "rounds.r1.parent=r2": "the parents go in a circle (r1 → r2 → r1)",
    "rounds.r2.generate.temperature=-0.5": "rounds.r2.generate.temperature: input should be greater than or equal to 0, not -0.5",
}


@pytest.mark.parametrize("edit", PARAMS)
def test_wrong_params(made, refused, edit):
    assign(edit)
    for command in (["stage", "judge", "r2"], ["run", "r2"], ["round", "list"], ["record"]):
        refused(*command, says=["params.yaml has 1 problem", PARAMS[edit]])


def test_several_wrong_params_are_one_message(made, refused):
    assign("rounds.r2.filter.leest=1", "rounds.r1.generate.samples=0", "rounds.r2.seed=one")
    says = [
        "has 3 problems",
        "rounds.r2.filter.leest: unknown",
        "rounds.r1.generate.samples: ",
        "rounds.r2.seed: must be a whole",
    ]
    refused("run", "r2", says=says)


def test_unknown_names(made, refused):
    refused("stage", "judge", "r22", says=["there is no round or base 'r22'; did you mean 'r2'"])
    refused("stage", "jugde", "r2", says=["there is no stage 'jugde'; did you mean 'judge'?"])
    refused("run", "r22", says=["there is no round or base 'r22'"])
    refused("run", "r22", "--dry-run", says=["there is no round or base 'r22'"])
    refused("promote", "r22", says=["there is no round or base 'r22'"])
    refused("export", "r22", "--to", "exported", says=["there is no round or base 'r22'"])
    refused("round", "remove", "r22", says=["there is no round 'r22'"])
    refused("round", "remove", "r1", says=["r1 is the parent of r2"])
    refused("round", "add", "r3", "--parent", "r22", says=["there is no base or round 'r22'"])
    refused(
        "round", "add", "r3", "--parent", "r2", "--set", "filter.leest=1", says=["unknown key; did you mean 'least'"]
    )
    refused("base", "add", "q0", "--hub", "someone/model", says=["pin a revision"])
    refused("export", "r22", "--to", "x", says=["r22"])
    assert not Path("x").exists()


def test_a_query_is_asked_for_and_an_id_is_traced(made, refused, flywheel):
    refused("sql", says=["name a query", "--write-views FILE"])
    refused("sql", "--write-views", "params.yaml", says=["params.yaml is another kind of file and stays as it is"])
    refused("trace", "nope", says=["no table has a row with the id 'nope'"])
    row = store.scan(made, "r2", "judgments")[0].head(1).collect()
    code, said = flywheel("trace", row["id"][0], "--round", "r2")
    assert code == 0
    told = [" ".join(line.split()[:2]) for line in said.splitlines()]
    assert told[0] == "judgments r2"
    assert {"responses r2", "prompts r2"} <= set(told)


def test_an_unknown_command_is_told(made, flywheel):
    code, said = flywheel("rnu", "r2")
    assert code == 2
    assert "No such command 'rnu'" in said


@pytest.mark.parametrize(
    "command", [["stage", "judge", "r1"], ["run", "r1"], ["report"], ["record"], ["round", "list"], ["render"]]
)
def test_a_folder_that_is_no_project(tmp_path, monkeypatch, refused, command):
    monkeypatch.chdir(tmp_path)
    refused(*command, says=[f"there is no params.yaml in {tmp_path}; run this in a project's root"])
    assert list(tmp_path.iterdir()) == []


def test_params_that_are_no_yaml(made, refused):
    Path("params.yaml").write_text("bases: {r0: [}\n")
    refused("run", "r2", says=["params.yaml is not valid YAML", "line 1"])


def test_a_seeds_file_with_a_broken_line(made, refused):
    mine = Path("data/seeds/mine.jsonl")
    mine.write_text('{"problem": "Tom has 2 pens."}\n{"problem": "Tom has\n')
    assign("rounds.r2.prompts.path=data/seeds/mine.jsonl", "rounds.r2.files=data/seeds/mine.jsonl")
    refused("stage", "prompts", "r2", says=["data/seeds/mine.jsonl:2:", "is not JSON", 'a line is {"problem": "…"}'])
    mine.write_text('{"problem": "Tom has 2 pens."}\n\n{"text": "Tom has"}\n')
    refused("stage", "prompts", "r2", says=["data/seeds/mine.jsonl:3: no text in 'problem'"])
    mine.unlink()
    refused("stage", "prompts", "r2", says=["data/seeds/mine.jsonl: cannot be read"])


SPOILT = {
    "config.json is missing": lambda m: (m / "config.json").unlink(),
    "there is no tokenizer": lambda m: (m / "tokenizer.json").unlink(),
    "model.safetensors is missing": lambda m: (m / "model.safetensors").unlink(),
    "model.safetensors is cut short or damaged": lambda m: (m / "model.safetensors").write_bytes(b"\0\0"),
    "pytorch_model.bin: pickled files can run code and are refused": lambda m: (m / "pytorch_model.bin").write_bytes(
        b"x"
    ),
    "config.json has `auto_map`": lambda m: (m / "config.json").write_text('{"auto_map": {"AutoModel": "m.M"}}'),
}


@pytest.mark.parametrize("says", SPOILT)
def test_a_model_that_is_incomplete_or_wants_to_run_code(made, refused, says):
    params = Path("params.yaml").read_bytes()
    shutil.copytree("data/base", "other")
    SPOILT[says](Path("other"))
    refused("base", "add", "q0", "--local", "other", says=["other", says])
    assert Path("params.yaml").read_bytes() == params
    assign("bases.r0.base.path=other")
    refused("stage", "base", "r0", says=["other", says])


def test_a_model_that_was_changed_after_it_was_added(made, refused):
    Path("data/base/config.json").write_text("{}")
    refused("stage", "generate", "r1", says=["data/base/config.json: sha256 is", "restore it"])


# Endpoints


@contextmanager
def serving(body: bytes):
    """A server that answers every request with this; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def ask(url: str) -> None:
    assign(f"rounds.r2.engine={{strategy: openai, model: m, base_url: '{url}', max_retries: 0, concurrency: 1}}")


def test_an_endpoint_that_is_down(made, refused):
    with serving(b"") as url:
        pass
    ask(url)
    refused("stage", "generate", "r2", says=[f"{url}: no server answers; start it"], code=75)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"error": "odd"}', b"\xff\x00"])
def test_an_endpoint_that_answers_garbage(made, refused, body):
    with serving(body) as url:
        ask(url)
        says = ["engine openai: none of 36 requests was answered", "reply cannot be read"]
        refused("stage", "generate", "r2", says=says, code=75)


def test_half_a_character_is_no_reason_to_fail(made, flywheel):
    message = {"role": "assistant", "content": "\ud800\x00 Answer: 3"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    reply = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    with serving(json.dumps(reply).encode()) as url:
        ask(url)
        assert flywheel("stage", "generate", "r2")[0] == 0
    assert flywheel("stage", "judge", "r2")[0] == 75  # the server is gone


# Files


@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_a_part_that_is_not_what_was_written(made, refused, damage):
    part = Path("data/round=r2/responses/part-00000.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.unlink()
    if damage != "delete":
        part.write_bytes(data[:-9] if damage == "cut" else data)
    says = {"cut": "bytes, its manifest says", "flip": "is not what was written", "delete": "is missing"}[damage]
    refused("stage", "judge", "r2", says=[str(part), says, "dvc checkout --force"])
    refused("stage", "filter", "r2", says=[str(part), says])


def test_a_manifest_that_is_none(made, refused):
    Path("data/round=r2/manifests/generate.json").write_text("{")
    for command in (["stage", "judge", "r2"], ["report"], ["sql", "select 1"]):
        refused(*command, says=["data/round=r2/manifests/generate.json: not a manifest"])


def test_a_full_disk(made):
    """A limit on the size of files stands for it: the system refuses to write on in the midst of a part."""
    before = projects.digests(made)
    size = (made / "data/round=r2/responses/part-00000.parquet").stat().st_size

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    quiet = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [FLYWHEEL, "stage", "generate", "r2"]
    done = subprocess.run(command, cwd=made, env=quiet, capture_output=True, text=True, preexec_fn=limited)
    assert (done.returncode, done.stdout) == (1, "")
    assert "flywheel: generate@r2: the disk is full (data/round=r2); free room and run it again." in done.stderr
    assert "Traceback" not in done.stderr
    assert projects.digests(made) == before


def test_a_place_that_nobody_may_write_to(made, refused, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", "data/round=r2/.staging/judge/new")

    monkeypatch.setattr("tasks.store.Draft.table", forbidden)
    refused("stage", "judge", "r2", says=["data/round=r2/.staging/judge/new: Permission denied"])


def test_a_second_run_of_the_same_stage(made, refused, flywheel):
    with FileLock("data/round=r2/.staging/judge/lock"):
        refused("stage", "judge", "r2", says=["judge@r2 is being run by another process; wait for it, or end it"])
        assert flywheel("stage", "judge", "r1")[0] == 0


def test_a_second_run_of_the_same_round(made):
    """Two processes at once: one does it, the other says that it is being done."""
    assign("rounds.r2.engine.seconds=0.1")
    command = [FLYWHEEL, "stage", "generate", "r2"]
    first = subprocess.Popen(command, cwd=made)
    lock = made / "data/round=r2/.staging/generate/new"
    while not lock.exists() and first.poll() is None:
        pass
    second = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert second.returncode == 1
    assert "generate@r2 is being run by another process" in second.stderr
    assert first.wait() == 0


def test_polars_memory_is_parted_before_polars_is_there():
    code = """
import os, sys, types
from tasks import __main__ as cli
def run_stage(*_):
    assert "polars" not in sys.modules
    print(os.environ["_RJEM_MALLOC_CONF"])
    raise SystemExit
sys.modules["tasks.execute"] = types.SimpleNamespace(run_stage=run_stage)
cli.stage("judge", "r1")
"""
    for given, used in ({}, f"narenas:{os.cpu_count()},muzzy_decay_ms:0"), ({"_RJEM_MALLOC_CONF": "a:1"}, "a:1"):
        env = {k: v for k, v in os.environ.items() if k != "_RJEM_MALLOC_CONF"} | given
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == used
