"""Strings in the place of names, paths and values: in every command, and in a params.yaml that somebody wrote by hand."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import projects
import pytest
from fence import Trespass, fence
from ruamel.yaml import YAML
from strings import ALL, CANARY
from typer.testing import CliRunner

from tasks.__main__ import app, guarded, main
from tasks.core.errors import FlywheelError, ParamsError
from tasks.project.params import load_params

SLOTS = 4
"""Of each string, how many commands or places are tried: every one gets its turn."""
ROUND = {"parent": "r0", "base": "r0", "seed": 1}
LOCAL = ["base", "add", "new", "--local", "data/base"]


def commands(text: str) -> list[list[str]]:
    """Calls of `flywheel` with a string in each place; those that write where it says only for names within the folder."""
    calls = [
        *(["round", "add", "new", f"--{option}", text] for option in ("parent", "recipe", "anchor", "like", "set")),
        *(["round", "add", "new", "--set", f"{key}={text}"] for key in ("seed", "recipe", "anchor", "engine.strategy")),
        *(["round", "add", "new", "--set", f"{key}={text}"] for key in ("prompts.seeds.path", "judge.reward")),
        *(["round", "add", "new", "--set", f"{stage}.{text}.strategy=x"] for stage in ("generate", "collect", "judge")),
        *([*LOCAL, "--set", f"{key}={text}"] for key in ("domain.strategy", "engine.strategy", "engine.base_url", "seed")),
        *([*LOCAL, "--set", f"{key}={text}"] for key in ("base.digest", "base.path", f"evaluate.{text}.strategy")),
        ["base", "add", "new", "--hub", text], ["base", "add", "new", "--hub", f"a/b@{text}"], ["base", "add", "new", "--local", text],
        ["round", "add", text], ["base", "add", text, "--local", "data/base"], ["campaign", "--recipe", text],
        *([*command, text] for command in (["run"], ["run", "--dry-run"], ["round", "show"], ["round", "remove"], ["base", "remove"])),
        *([command, text] for command in ("promote", "replay", "preview", "export", "judges", "verify", "trace", "why-not", "sql")),
        ["recipe", "show", text], ["stage", text, "r1"], ["stage", "judge", text], ["replay", "r1", "--stage", text],
        ["whatif", text, "--set", "seed=9"], ["whatif", "r1", "--set", text], ["whatif", "r1", "--name", f"{text} ", "--set", "seed=9"],
        ["bisect", "--good", text, "--bad", "r2"], ["bisect", "--good", "r1", "--bad", text], ["bisect", "--good", "r1", "--bad", "r2", "--metric", f"no {text}"],
        ["bakeoff", "--recipes", text], ["bakeoff", "--recipes", "sharpen", "--base", text], ["judges", "r0", "--judge", text],
        ["diff", text, "r1"], ["diff", f"r1@{text}", "r1"], ["diff", f"{text}@HEAD", "r1"], ["diff", "r1", "r2", "--table", text],
        ["diff", "r1", "r2", "--sql", text], ["trace", "abc", "--round", text], ["why-not", "--prompt", text], ["why-not", "abc", "--round", text],
        ["export", "r1", "--push", f"{text}/"], ["export", "r1", "--to", "exported", "--license", text],
    ]  # fmt: skip
    if not (text.startswith(("/", "\\")) or ".." in text or text in ("", ".")):
        calls += [["sql", "select 1", "--out", text], ["export", "r1", "--to", text], ["sql", "--write-views", text]]
    return calls


def turns(made: list[Any], attempt: int) -> list[Any]:
    """The few of a list that a try gets."""
    start = SLOTS * (attempt // 10) + 7 * (attempt % 10)
    return [made[(start + n) % len(made)] for n in range(SLOTS)]


@pytest.mark.torture(
    "a command, code, an option, a path, a YAML word or a control character as an argument of any command",
    "nothing is executed; refused, or stored exactly",
)
def test_in_every_command(made, tmp_path, tries):
    before = {path: path.read_bytes() for path in (made / "params.yaml", made / "dvc.yaml")}
    shutil.copytree(projects.HERE / "data/base", made / "data/base", dirs_exist_ok=True)
    own = {path.name for path in made.iterdir()}
    for attempt in tries(len(ALL)):
        for call in turns(commands(ALL[attempt]), attempt):
            if any("\ud800" <= c <= "\udfff" for c in ALL[attempt]):
                continue  # `main` refuses what is not UTF-8 for all commands
            with fence(tmp_path.parent):
                done = CliRunner().invoke(app, ["--", *call] if call[0].startswith("-") else call)
            said = (call, done.output, done.exception)
            assert done.exception is None or isinstance(done.exception, FlywheelError | SystemExit), said
            assert not isinstance(done.exception, Trespass), said
            if done.exit_code == 0:
                assert is_stored(made, call, ALL[attempt]), said
            for path in made.iterdir():
                if path.name not in own and path.name not in (".flywheel", "tmp"):
                    assert done.exit_code == 0, (said, path)
                    assert path.name != CANARY or CANARY in call[-1], said
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path, content in before.items():
                path.write_bytes(content)


def is_stored(root: Path, call: list[str], text: str) -> bool:
    """Whether what a command took is what was written: the name or value in params.yaml, or the file."""
    content = YAML(typ="safe").load(root / "params.yaml")
    if call[:2] in (["round", "add"], ["base", "add"]):
        meant = YAML(typ="safe").load(text) if text[:1] in ("'", '"') and "--set" in call else text
        return call[2] in content[f"{call[0]}s"] and meant in leaves(content)
    return True


def leaves(value: Any) -> set[str]:
    """Every text in a value: keys, and values as they are or as JSON writes them."""
    if isinstance(value, dict):
        return {str(k) for k in value}.union(*map(leaves, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(leaves, value))
    return {str(value), json.dumps(value, default=str)}


def put(*path: str):
    """Writes the string at a path of params.yaml."""

    def change(content: dict[str, Any], text: str) -> None:
        *parents, last = path
        for key in parents:
            content = content.setdefault(key, {})
        content[last] = text

    return change


def block(*path: str, **values: Any):
    """Writes a block under the string as its name."""

    def change(content: dict[str, Any], text: str) -> None:
        for key in path:
            content = content.setdefault(key, {})
        content[text] = copy.deepcopy(values)

    return change


def replaced(key: str, **values: Any):
    """Gives the base another block, in which the value `TEXT` is the string."""

    def change(content: dict[str, Any], text: str) -> None:
        content["bases"]["r0"][key] = {
            k: text if v == "TEXT" else [text] if v == ["TEXT"] else v for k, v in values.items()
        }

    return change


SERVER = {"strategy": "openai", "base_url": "http://127.0.0.1:1/v1"}
PLACES = [
    lambda content, text: content["bases"].update({text: copy.deepcopy(content["bases"]["r0"])}),
    block("rounds", **ROUND),
    block("models", engine={**SERVER, "model": "m"}),
    block("rounds", "r1", "set", "generate", strategy="sample"),
    block("rounds", "r1", "set", "judge", strategy="random"),
    block("bases", "r0", "evaluate", strategy="answers"),
    block("bases", "r0", "gate", strategy="coverage"),
    block(), block("bases", "r0"), block("rounds", "r1"), block("rounds", "r1", "set"), block("prices", "tokens", prompt=1.0),
    *(put("rounds", "r1", key) for key in ("parent", "base", "anchor", "recipe", "seed", "set")),
    *(put("bases", "r0", key) for key in ("seed", "domain", "engine", "base", "evaluate", "gate")),
    *(put("bases", "r0", key, "strategy") for key in ("domain", "engine", "base")),
    *(put("rounds", "r1", "set", key) for key in ("prompts.seeds.path", "generate.sample.strategy", "judge.reward")),
    *(put(*path) for path in (("campaign", "name"), ("defaults", "recipe"), ("prices", "currency"), ("bases",), ("rounds",))),
    replaced("engine", **{**SERVER, "base_url": "TEXT"}),
    replaced("engine", **SERVER, model="TEXT"),
    replaced("base", strategy="local", path="TEXT"),
    replaced("base", strategy="local", path="x", digest="TEXT"),
    replaced("base", strategy="hub", repo="TEXT", revision="0" * 40),
    replaced("base", strategy="hub", repo="a/b", revision="TEXT"),
    lambda content, text: content.update(models={"m": {"engine": {"strategy": "fake"}, "path": text, "digest": "0" * 64}}),
    lambda content, text: content["bases"]["r0"]["evaluate"].update(lm_eval={"tasks": [text]}),
]  # fmt: skip


@pytest.mark.torture(
    "the same strings as names and values of a params.yaml that was written by hand",
    "refused with file, key and value, or stored exactly; no command of DVC holds one",
)
def test_in_params(project, tmp_path, tries):
    root = project()
    values = projects.values(root)
    for attempt in tries(len(ALL)):
        text = ALL[attempt]
        for change in turns(PLACES, attempt):
            content = copy.deepcopy(values)
            change(content, text)
            (root / "params.yaml").write_text(json.dumps(content))  # which is YAML, and can say every character
            try:
                with fence(tmp_path.parent):
                    pipeline = load_params(root)
            except ParamsError as error:
                assert str(error).startswith("params.yaml"), (text, error)
            else:
                kept = [b.values for b in pipeline.blocks.values()] + [
                    pipeline.campaign.model_dump(),
                    list(pipeline.blocks),
                ]
                kept += [{n: m.model_dump(mode="json", exclude={"engine"}) for n, m in pipeline.roster.items()}]
                kept += [pipeline.prices and pipeline.prices.model_dump(mode="json")]
                kept += [b.recipe for b in pipeline.blocks.values()]
                text = text if text in leaves(kept) else str(Path(text))  # a path without its `//`
                assert text in leaves(kept) | leaves([str(b.engine) for b in pipeline.blocks.values()]), text


def test_dvcs_commands_hold_none_of_them(project):
    root = project()

    def add(content: Any) -> None:
        for text in ALL[::3]:
            if text.isprintable() and not {"/", "@"} & {*text} and 0 < len(text) < 200:
                content["bases"][text] = {}
                content["rounds"][text] = dict(ROUND)

    projects.rewrite(root, add)
    with projects.dvc(root) as repo:
        commands = {stage.cmd for stage in repo.index.stages}
    assert len(commands) == 12
    assert all(c == "flywheel plan" or c.endswith(' "$DVC_STAGE"') for c in commands)


@pytest.mark.parametrize("value", ["x #y", "# x", " x", "&a x", "!x", ">x"])
def test_a_value_that_yaml_reads_otherwise_is_refused(project, value):
    project()
    done = CliRunner().invoke(app, ["round", "add", "new", "--set", f"prompts.seeds.path={value}"])
    assert isinstance(done.exception, FlywheelError)
    assert "--set prompts.seeds.path" in str(done.exception)


def test_a_message_moves_no_cursor_and_turns_no_text(project, capsys):
    project()
    for text in ("\x1b[2J", "x\rdone", "\u202e1r", "r\u200b1", "\x9b31m"):
        with pytest.raises(SystemExit):
            guarded(lambda text=text: app(["round", "add", "new", "--parent", text], standalone_mode=False))
        said = capsys.readouterr().err
        assert text not in said and text.encode("unicode_escape").decode().strip("'") in said.replace("\\\\", "\\")


def test_what_is_not_utf_8_is_refused(project, monkeypatch, capsys):
    project()
    for text in ("\udcff", "x\udc80y"):
        monkeypatch.setattr("sys.argv", ["flywheel", "trace", text])
        with pytest.raises(SystemExit, match="1"):
            main()
        assert "is not UTF-8" in capsys.readouterr().err


def test_the_fence_holds(tmp_path):
    """What the tests above rely on."""
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    (tmp_path / "inside").mkdir()
    for trespass in (
        lambda: shutil.rmtree(outside, ignore_errors=True),
        lambda: (outside / "new").write_text("x"),
        lambda: (outside / "kept").rmdir(),
        lambda: shutil.rmtree(tmp_path / "inside" / ".." / "outside"),
        lambda: __import__("subprocess").run(["touch", "x"], check=False),
        lambda: __import__("os").system("true"),
    ):
        with pytest.raises(Trespass), fence(tmp_path / "inside"):
            trespass()
    assert (outside / "kept").is_dir()
