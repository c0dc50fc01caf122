"""Bad input: each gets one clear message and an exit code that is not 0, and nothing already made is lost."""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import projects
import pytest
from filelock import FileLock

from tasks.__main__ import app, guarded
from tasks.core import models, store
from tasks.core.plan import Plan
from tasks.project import plan, recipes

pytestmark = pytest.mark.xdist_group("campaign")
FLYWHEEL = Path(sys.executable).parent / "flywheel"


@pytest.fixture
def flywheel(monkeypatch, capsys):
    """Runs a command in this process: its exit code, and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["flywheel", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            guarded(app)
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out + printed.err

    return run


@pytest.fixture
def refused(flywheel):
    """Runs a command that must fail with one message, which holds all of `words`; nothing that was made may change."""

    def run(*arguments: str, words: list[str], code: int = 1) -> None:
        before = projects.digests(Path())
        exit_code, printed = flywheel(*arguments)
        assert exit_code == code, printed
        assert "Traceback" not in printed
        assert printed.count("flywheel: ") == 1
        for part in words:
            assert part in printed, printed
        assert projects.digests(Path()) == before

    return run


def assign(*edits: str) -> None:
    """Writes values into params.yaml, valid or not: `rounds/r2/seed=3`."""
    projects.rewrite(Path(), lambda content: content.update(edited(content, *edits)))


def edited(content, *edits: str):
    for edit in edits:
        path, value = edit.split("=", 1)
        *parents, last = path.split("/")
        at = content
        for key in parents:
            at = at[key]
        at[last] = projects.YAML(typ="safe").load(value)
    return content


def planned(*edits: str) -> None:
    """Writes values into params.yaml, and makes the plans anew."""
    assign(*edits)
    plan.write(Path())


# Commands


def test_help_names_every_command(flywheel):
    for arguments, commands in {
        ("--help",): (
            "run",
            "campaign",
            "recipes",
            "plan",
            "stage",
            "sql",
            "trace",
            "promote",
            "round",
            "base",
            "recipe",
        ),
        ("round", "--help"): ("add", "show", "list", "remove"),
        ("recipe", "--help"): ("show",),
        ("base", "--help"): ("add", "remove"),
        ("up", "--help"): ("PREFECT_SERVER_API_PORT", "MLFLOW_PORT"),
        ("round", "add", "--help"): ("--parent", "--recipe", "--anchor", "--like", "--set"),
    }.items():
        code, printed = flywheel(*arguments)
        assert code == 0
        assert not [c for c in commands if c not in printed]
    for arguments in ((), ("round",), ("recipe",)):
        assert "Usage" in flywheel(*arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["rnu", "r2"], "'rnu'"), (["run"], "round"), (["run", "r1", "r2"], "r2"), (["round", "add"], "name"),
     (["campaign", "--rounds", "0"], "--rounds"), (["campaign", "--rounds", "many"], "--rounds"), (["stage", "judge"], "round"),
     (["run", "r2", "--dry"], "--dry"), (["sql", "select 1", "--format", "xml"], "'xml'"), (["recipe", "shw"], "'shw'")],
)  # fmt: skip
def test_wrong_arguments(made, flywheel, arguments, word):
    before = projects.digests(Path())
    code, printed = flywheel(*arguments)
    assert code == 2
    assert word in printed
    assert projects.digests(Path()) == before


def test_recipes_and_rounds_are_shown(made, flywheel):
    code, printed = flywheel("recipes")
    listed = [line.split()[0] for line in printed.splitlines()]
    assert (code, listed) == (0, ["recipe", *recipes.names(Path())])
    assert {"sharpen", "small"} <= set(listed)
    code, printed = flywheel("recipe", "show", "sharpen")
    assert (code, "arXiv:2203.11171" in printed, "likeliest: 2" in printed) == (0, True, True)
    code, printed = flywheel("round", "show", "r2")
    assert (code, "r2: parent r1, base r0, recipe small" in printed) == (0, True)
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[2:]}
    assert rows["generate.sample.samples"] == ["3", "recipe", "small"]
    assert rows["generate.sample.temperature"] == ["1.0", "default"]
    code, printed = flywheel("round", "list")
    assert (code, [n for n in ("r0", "r1", "r2") if n not in printed]) == (0, [])


def test_a_round_is_added_and_removed(made, flywheel):
    before = Path("params.yaml").read_bytes()
    code, printed = flywheel("round", "add", "r3", "--parent", "r2", "--recipe", "small", "--anchor", "r0",
                             "--set", "generate.sample.samples=2", "--set", "judge.random={}")  # fmt: skip
    assert (code, "flywheel run r3" in printed) == (0, True)
    assert projects.values(Path())["rounds"]["r3"] == {
        "parent": "r2", "base": "r0", "seed": 3, "recipe": "small", "anchor": "r0",
        "set": {"generate.sample.samples": 2, "judge.random": {}}}  # fmt: skip
    assert flywheel("round", "add", "b3", "--parent", "r1", "--like", "r3")[0] == 0
    assert projects.values(Path())["rounds"]["b3"]["set"] == {"generate.sample.samples": 2, "judge.random": {}}
    for name in ("b3", "r3"):
        code, printed = flywheel("round", "remove", name)
        assert (code, f"data/round={name}" in printed) == (0, False), "nothing was made of it"
    assert Path("params.yaml").read_bytes() == before


def test_a_base_is_added(made, flywheel):
    shutil.copytree("data/base", "other")
    code, printed = flywheel("base", "add", "q0", "--local", "other", "--set", "engine.seconds=0.5")
    assert (code, "--parent q0" in printed) == (0, True)
    assert "domain arithmetic, engine fake, exam answers, judging, critiques, " in printed and "that of r0" in printed
    base = projects.values(Path())["bases"]["q0"]
    assert base["base"] == {"strategy": "local", "path": "other", "digest": models.digest(Path("other"))}
    assert (base["engine"], base["evaluate"]) == ({"strategy": "fake", "seconds": 0.5}, projects.EXAM | {
        "answers": projects.EXAM["answers"]})  # fmt: skip
    assert flywheel("base", "remove", "q0") == (0, "params.yaml no longer has q0.\n")


def test_plans_are_made_anew_when_something_was_edited(made, flywheel):
    assert flywheel("plan") == (0, "data/plan is up to date\n")
    assign("rounds/r2/set={pair.best_worst.min_margin: 0.5}")
    assert flywheel("plan") == (0, "data/plan: 1 plan changed\n")
    assert Plan.read(Path(), "r2", "pair").members["best_worst"]["min_margin"] == 0.5
    assign("rounds/r2/set={generate.sample.model: anchor}", "rounds/r2/anchor=r0")
    code, printed = flywheel("plan")
    assert (code, "dvc.yaml" in printed) == (1, True)
    assert flywheel("plan")[0] == 0
    assert flywheel("render") == (0, "dvc.yaml is up to date.\n")


def test_schemas_are_json(flywheel):
    for arguments, key in ((("schema",), "bases"), (("schema", "--recipe"), "stages")):
        code, printed = flywheel(*arguments)
        assert (code, key in json.loads(printed)["properties"]) == (0, True)


# What is wrong


PARAMS = {
    "rounds/r2/set={judge.verfier: {}}": ["rounds.r2.set.judge.verfier: ", "'verifier'"],
    "rounds/r2/set={filter.strategy: treshold}": ["rounds.r2.set.filter.treshold: ", "'threshold'"],
    "bases/r0/engine/strategy=vlm": ["bases.r0.engine: ", "'vllm'"],
    "rounds/r2/set={filter.threshold.min_rewrd: 1}": ["rounds.r2.set.filter.threshold.min_rewrd: ", "'min_reward'"],
    "rounds/r2/parent=r11": ["rounds.r2.parent: ", "'r1'"],
    "rounds/r1/parent=r2": ["rounds.r1.parent: ", "r1 → r2 → r1"],
    "rounds/r2/set={generate.sample.temperature: -0.5}": ["rounds.r2.set.generate.sample.temperature: ", "-0.5"],
    "rounds/r2/set={evaluate.answers.temperature: 0.1}": [
        "rounds.r2.set.evaluate.answers.temperature: ",
        "bases.r0.evaluate",
    ],
    "rounds/r2/recipe=smal": ["rounds.r2.recipe: ", "'small'"],
}


@pytest.mark.parametrize("edit", PARAMS)
def test_wrong_params(made, refused, edit):
    assign(edit)
    for command in (["plan"], ["run", "r2"], ["round", "list"], ["record"]):
        refused(*command, words=["params.yaml has 1 problem", *PARAMS[edit]])


def test_several_wrong_params_are_one_message(made, refused):
    assign(
        "rounds/r2/set={filter.threshold.leest: 1}", "rounds/r1/set={generate.sample.samples: 0}", "rounds/r2/seed=one"
    )
    places = ["rounds.r2.set.filter.threshold.leest: ", "rounds.r1.set.generate.sample.samples: ", "rounds.r2.seed: "]
    refused("run", "r2", words=["has 3 problems", *places])


def test_a_recipe_that_is_wrong_is_named_once(made, refused):
    projects.write_recipe(made, "small", projects.SMALL | {"filter": {"threshold": {"min_rewrd": 1}}})
    refused(
        "run", "r2", words=["has 1 problem:", "recipes/small.yaml: stages.filter.threshold.min_rewrd: ", "'min_reward'"]
    )


def test_unknown_names(made, refused):
    for command in (["run", "r22"], ["run", "r22", "--dry-run"], ["promote", "r22"], ["export", "r22", "--to", "x"],
                    ["round", "show", "r22"]):  # fmt: skip
        refused(*command, words=["there is no round or base 'r22'; did you mean 'r2'"])
    refused("stage", "judge", "r22", words=["r22"])
    refused("stage", "jugde", "r2", words=["jugde"])
    refused("recipe", "show", "smal", words=["there is no recipe 'smal'; did you mean 'small'"])
    refused("round", "remove", "r22", words=["there is no round 'r22'"])
    refused("round", "remove", "r1", words=["r1 is the parent of r2"])
    refused("round", "add", "r3", "--parent", "r22", words=["there is no base or round 'r22'"])
    refused("round", "add", "r3", "--parent", "r2", "--recipe", "smal", words=["rounds.r3.recipe: ", "'small'"])
    refused("round", "add", "r3", "--parent", "r2", "--anchor", "r5", words=["rounds.r3.anchor: ", "'r5'"])
    refused("round", "add", "r3", "--parent", "r2", "--like", "r5", words=["'r5'"])
    refused("round", "add", "r3", "--parent", "r2", "--set", "filter.threshold.min_rewrd=1", words=["'min_reward'"])
    refused("round", "add", "r3", "--parent", "r2", "--set", "gate.improves.min_gain=-1", words=["bases.r0.gate"])
    refused("base", "add", "q0", "--hub", "someone/model", words=["pin a revision"])
    refused("base", "add", "q0", words=["--hub", "--local"])
    assert not Path("x").exists()


def test_a_query_from_a_file_or_from_standard_input(made, refused, flywheel, monkeypatch):
    query = "select id from prompts order by id limit 1"
    Path("query.sql").write_text(query)
    monkeypatch.setattr(sys, "stdin", io.StringIO(query))
    printed = [
        flywheel("sql", *arguments, "--format", "csv") for arguments in ((query,), ("--file", "query.sql"), ("-",))
    ]
    assert len(set(printed)) == 1 and printed[0][0] == 0
    refused("sql", "select 1", "--file", "query.sql", words=["--file query.sql: ", "name one of both"])
    refused("sql", "--file", "gone.sql", words=["--file gone.sql: cannot be read"])
    code, printed = flywheel("sql", "--write-views", "views.duckdb")
    assert (code, "are copies" in printed) == (0, True)


def test_a_query_is_asked_for_and_an_id_is_traced(made, refused, flywheel):
    refused("sql", words=["name a query", "--write-views FILE"])
    refused("sql", "--write-views", "params.yaml", words=["params.yaml is another kind of file and stays as it is"])
    refused("trace", "nope", words=["no table has a row with the id 'nope'"])
    row = store.scan(made, "r2", "judgments")[0].head(1).collect()
    code, printed = flywheel("trace", row["id"][0], "--round", "r2")
    assert code == 0
    assert printed.startswith(f"judgments r2 {row['id'][0]}")
    assert f"responses r2 {row['response_id'][0]}" in printed


@pytest.mark.parametrize(
    "command",
    [
        ["plan"],
        ["run", "r1"],
        ["report"],
        ["record"],
        ["round", "list"],
        ["round", "show", "r1"],
        ["render"],
        ["sql", "show tables"],
    ],
)
def test_a_folder_that_is_no_project(tmp_path, monkeypatch, refused, command):
    monkeypatch.chdir(tmp_path)
    refused(*command, words=[f"there is no params.yaml in {tmp_path}"])
    assert list(tmp_path.iterdir()) == []


def test_params_that_are_no_yaml(made, refused):
    Path("params.yaml").write_text("bases: {r0: [}\n")
    refused("run", "r2", words=["params.yaml is not valid YAML", "line 1"])
    refused("plan", words=["params.yaml is not valid YAML"])


def test_a_seeds_file_with_a_broken_line(made, refused):
    mine = Path("data/seeds/mine.jsonl")
    mine.write_text('{"problem": "Tom has 2 pens."}\n{"problem": "Tom has\n')
    planned("rounds/r2/set={prompts.seeds.path: data/seeds/mine.jsonl}")
    refused("stage", "prompts", "r2", words=["data/seeds/mine.jsonl:2:", "is not JSON", 'a line is {"problem": "…"}'])
    mine.write_text('{"problem": "Tom has 2 pens."}\n\n{"text": "Tom has"}\n')
    refused("stage", "prompts", "r2", words=["data/seeds/mine.jsonl:3: no text in 'problem'"])
    mine.unlink()
    refused("stage", "prompts", "r2", words=["data/seeds/mine.jsonl: cannot be read"])


def test_all_broken_lines_of_a_seeds_file_are_told_before_a_run(made, refused, flywheel):
    mine = Path("data/seeds/mine.jsonl")
    good = '{"problem": "Tom has 2 keys.\\nDay 1: 2 got\\nHow many?"}\n'
    mine.write_text(good + '{"problem": "Tom\n' + "\n" + '{"text": "Tom"}\n' + '{"problem": "Tom", "level": "low"}\n')
    planned("rounds/r2/set={prompts.seeds.path: data/seeds/mine.jsonl, prompts.seeds.count: 100}")
    words = ["3 broken lines", "mine.jsonl:2: ", "mine.jsonl:4: no text", "mine.jsonl:5: 'level' is 'low'"]
    for arguments in (["run", "r2"], ["run", "r2", "--dry-run"]):
        refused(*arguments, words=words)
    mine.write_text("[1]\n" * 30)
    refused("run", "r2", words=["30 broken lines", "mine.jsonl:20: ", "and 10 more"])
    mine.write_text(good * 3)
    code, printed = flywheel("run", "r2", "--dry-run")
    assert (code, "generate@r2" in printed) == (0, True)


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
    refused("base", "add", "q0", "--local", "other", words=["other", says])
    assert Path("params.yaml").read_bytes() == params
    planned("bases/r0/base/path=other")
    refused("stage", "base", "r0", words=["other", says])


def test_a_model_that_was_changed_after_it_was_added(made, refused):
    Path("data/base/config.json").write_text("{}")
    refused("stage", "generate", "r1", words=["data/base/config.json: sha256 is", "restore it"])


# Endpoints


@contextmanager
def serving(answer: Callable[[], bytes]):
    """A server that answers every request with what this gives; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = answer()
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


def serve_round(url: str, *more: str) -> None:
    """Has the round r2 ask a server, which has the weights of r1."""
    served = f"served: {{{models.digest(Path('data/round=r1/model'))}: m}}"
    engine = ", ".join(["strategy: openai", served, f"base_url: '{url}'", "max_retries: 0", "concurrency: 1", *more])
    planned(f"rounds/r2={{parent: r1, base: r0, seed: 2, set: {{engine: {{{engine}}}}}}}")


def test_an_endpoint_that_is_down(made, refused):
    with serving(lambda: b"") as url:
        pass
    serve_round(url)
    refused("stage", "generate", "r2", words=[url, "no server answers"], code=75)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"error": "odd"}', b"\xff\x00"])
def test_an_endpoint_that_answers_garbage(made, refused, body):
    with serving(lambda: body) as url:
        serve_round(url)
        words = ["36 of 36 requests failed", "max_error_share", "reply cannot be read"]
        refused("stage", "generate", "r2", words=words, code=75)


def reply(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    ).encode()


def test_a_stage_that_failed_too_often_asks_for_the_rest_alone_when_it_runs_again(made, refused, flywheel):
    replies = []

    def answer(failing: set[int]) -> bytes:
        replies.append(len(replies))
        return b"busy" if replies[-1] in failing else reply("Answer: 3")

    with serving(lambda: answer({4, 9, 14})) as url:  # three of 36: a twelfth
        serve_round(url)
        refused("stage", "generate", "r2", words=["model parent: 3 of 36", "max_error_share (0.05)"], code=75)
        assert len(replies) == 36
        assert flywheel("stage", "generate", "r2")[0] == 0
    assert len(replies) == 36 + 3, "what was answered is in the cache"
    rows = store.scan(made, "r2", "responses")[0].collect()
    assert (len(rows), rows["error"].null_count()) == (36, 36)


def test_a_smaller_share_of_errors_is_rows(made, flywheel):
    replies = []

    def answer() -> bytes:
        replies.append(len(replies))
        return b"busy" if replies[-1] == 7 else reply("Answer: 3")

    with serving(answer) as url:
        serve_round(url)
        assert flywheel("stage", "generate", "r2")[0] == 0
    assert store.manifests(made, "r2")["generate"].metrics["response_errors"] == 1


def test_half_a_character_is_a_row_with_an_error(made, flywheel):
    replies = iter(range(40))
    with serving(lambda: reply("\x00 Answer: 3" if next(replies) != 7 else "\ud800 Answer: 3")) as url:
        serve_round(url)
        assert flywheel("stage", "generate", "r2")[0] == 0
    errors = store.scan(made, "r2", "responses")[0].collect()["error"].drop_nulls().to_list()
    assert len(errors) == 1
    assert "surrogate" in errors[0], errors
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
    refused("stage", "judge", "r2", words=[str(part), says, "dvc checkout --force"])
    refused("stage", "filter", "r2", words=[str(part), says])


def test_a_manifest_that_is_none(made, refused):
    Path("data/round=r2/manifests/generate.json").write_text("{")
    for command in (["stage", "judge", "r2"], ["report"], ["sql", "select count(*) from responses"]):
        refused(*command, words=["data/round=r2/manifests/generate.json: not a manifest"])


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
    assert "flywheel: generate@r2: the disk is full (data/round=r2)" in done.stderr
    assert "Traceback" not in done.stderr
    assert projects.digests(made) == before


def test_a_place_that_nobody_may_write_to(made, refused, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", "data/round=r2/.staging/judge/new")

    monkeypatch.setattr("tasks.core.store.Draft.table", forbidden)
    refused("stage", "judge", "r2", words=["data/round=r2/.staging/judge/new: Permission denied"])


def test_a_second_run_of_the_same_stage(made, refused, flywheel):
    with FileLock("data/round=r2/.staging/judge/lock"):
        refused("stage", "judge", "r2", words=["judge@r2 is being run by another process"])
        assert flywheel("stage", "judge", "r1")[0] == 0


def test_a_second_run_of_the_same_round(made):
    """Two processes at once: one does it, the other says that it is being done."""
    planned("rounds/r2/set={engine.seconds: 0.1}")
    command = [FLYWHEEL, "stage", "generate", "r2"]
    first = subprocess.Popen(command, cwd=made)
    lock = made / "data/round=r2/.staging/generate/new"
    while not lock.exists() and first.poll() is None:
        pass
    second = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert second.returncode == 1
    assert "generate@r2 is being run by another process" in second.stderr
    assert first.wait() == 0


def test_polars_memory_is_parted_before_polars_is_there(tmp_path):
    code = """
import os, sys, types
from tasks.commands import rounds as cli
def run_stage(*_):
    assert "polars" not in sys.modules
    print(os.environ["_RJEM_MALLOC_CONF"])
    raise SystemExit
sys.modules["tasks.project.execute"] = types.SimpleNamespace(run_stage=run_stage)
cli.stage("judge", "r1")
"""
    for given, used in ({}, f"narenas:{os.cpu_count()},muzzy_decay_ms:0"), ({"_RJEM_MALLOC_CONF": "a:1"}, "a:1"):
        env = {k: v for k, v in os.environ.items() if k != "_RJEM_MALLOC_CONF"} | given
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == used
