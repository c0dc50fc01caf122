"""dvc.lock cut short and mended, DVC's list of readers after a kill, and what is remembered so that DVC is not asked."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import projects
import pytest

from tasks.core.errors import FlywheelError
from tasks.project import graph, lockfile, status_cache
from tasks.project.params import load_params

pytestmark = pytest.mark.xdist_group("campaign")


def ask(root):
    """What is stale of all stages."""
    params = load_params(root)
    return graph.changed_stages(root, list(graph.graph(params, ["r2"])), params)


@pytest.fixture(scope="module")
def text(campaign):
    return (campaign / "dvc.lock").read_text()


def test_entries_are_the_text(text):
    found = lockfile.entries(text)
    assert lockfile.HEADER + "".join(found.values()) == text
    assert len(found) == 1 + 2 + 10 + 10
    assert all(entry.startswith(f"  {name}:\n    cmd:") for name, entry in found.items())


def test_outputs_are_those_of_the_whole_file(text):
    every = lockfile.outs(f"# by hand\n{text}")  # which is parsed as a whole
    assert lockfile.outs(text) == every
    model = "data/round=r1/model"
    some = lockfile.outs(text, model)
    assert every.items() > some.items()
    assert every[model] == some[model]
    assert lockfile.outs(text, "no such path") == lockfile.outs("") == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + "datasets: []\n",
        lambda t: "# by hand\n" + t,
        lambda t: t + "<<<<<<<\n",
        lambda t: t.replace("\n  ", "\n    "),
        lambda t: t.replace("\n  ", "\n    ").rstrip(),
        lambda t: "# by hand\n" + t.rstrip(),
    ],
)
def test_what_dvc_does_not_write_like_that_is_left_to_dvc(text, change):
    assert lockfile.entries(change(text)) == {}
    assert not lockfile.is_cut(change(text))


def test_without_its_last_line_break_a_lock_has_all_its_entries(tmp_path, text):
    """In a clone, where there is neither a copy nor a result to restore it from."""
    (tmp_path / "dvc.lock").write_text(text.rstrip())
    assert lockfile.take_back(tmp_path)
    assert (tmp_path / "dvc.lock").read_text() == text


def test_every_cut_within_a_line_is_seen(text):
    assert not lockfile.is_cut(text)
    assert all(lockfile.is_cut(text[:end]) for end in range(0, len(text), 7) if text[:end][-1:] != "\n")


def test_entries_are_written_as_dvc_writes_them(made):
    with projects.dvc(made) as repo, repo.lock:
        [stage] = repo.stage.collect("judge@r1")
        stage.outs[0].meta.size = 123
        before = (made / "dvc.lock").read_text()
        with lockfile.quick():
            stage.dump(update_pipeline=False)
            [again] = repo.stage.collect("judge@r1")
            assert again.outs[0].meta.size == 123
        ours = (made / "dvc.lock").read_text()
        (made / "dvc.lock").write_text(before)
        stage.dump(update_pipeline=False)
    assert ours == (made / "dvc.lock").read_text() != before
    assert (made / lockfile.COPY).read_text() == ours


@pytest.mark.torture(
    "`kill -9` while DVC writes dvc.lock, which leaves it cut short", "it is taken back, and no stage runs again"
)
def test_a_lock_that_is_cut_short_is_mended(made, text, tries):
    choose = random.Random(0)
    for attempt in tries(40):
        (made / lockfile.COPY).unlink(missing_ok=True)
        if attempt % 20:  # else there never was a copy, as in a project's first run
            lockfile.keep(made)
        end = choose.randrange(len(text)) if attempt else 0
        (made / "dvc.lock").write_text(text[:end])
        assert ask(made) == set(), end
        assert lockfile.read(made).keys() == lockfile.entries(text).keys(), end
        (made / "dvc.lock").write_text(text)


def test_what_no_manifest_vouches_for_is_not_restored(made, text):
    part = next((made / "data/round=r2/judgments").iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    (made / "dvc.lock").write_text("")
    assert "judge@r2" in ask(made)
    assert "judge@r2" not in lockfile.read(made)


def test_what_is_not_all_as_the_stage_wrote_it_is_not_restored(made):
    """Where DVC has no entry that would tell: a plot and metrics that are gone, edited metrics, an edited plot, a file
    beside a table.
    """
    (made / "data/round=r2/plots/levels.csv").unlink()
    (made / "data/round=r2/metrics/judge.json").unlink()
    (made / "data/round=r1/metrics/filter.json").write_text('{"kept": 1.0}')
    (made / "data/round=r1/pairs/more").write_text("")
    plot = made / "data/round=r1/plots/levels.csv"
    plot.write_text(plot.read_text().replace("0.", "0.9", 1))
    (made / "dvc.lock").unlink()
    assert ask(made) == {"evaluate@r2", "judge@r2", "filter@r1", "pair@r1", "evaluate@r1"}


def test_a_stage_with_other_results_than_dvc_knows_runs_as_ever(made):
    """Its entry is whole, so DVC decides: a plot that somebody edited is not taken for the stage's."""
    (made / "data/round=r2/plots/levels.csv").write_text("level\n")
    assert ask(made) == {"evaluate@r2"}


@pytest.mark.parametrize("name", ["model", "judgments/part-00000.parquet"])
def test_a_link_to_nothing_is_named(made, name):
    place = made / "data/round=r1" / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(made / "nowhere")
    with pytest.raises(FlywheelError, match=rf"{place} is a link to nothing; remove it, and `dvc checkout"):
        ask(made)


# Readers and writers


def holders(*pids):
    return json.dumps({"write": {f"data/{pid}": {"pid": pid, "cmd": "dvc repro"} for pid in pids}})


def test_readers_and_writers_that_are_gone_are_forgotten(made):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (made / ".dvc/tmp/rwlock").write_text(holders(dead.pid))
    graph.mend_lock(made)
    assert not (made / ".dvc/tmp/rwlock").exists()


def test_a_living_one_is_left(made):
    (made / ".dvc/tmp/rwlock").write_text(holders(os.getpid()))
    graph.mend_lock(made)
    assert (made / ".dvc/tmp/rwlock").exists()


def test_a_later_process_with_the_number_of_a_killed_one_holds_nothing(made):
    (made / ".dvc/tmp/rwlock").write_text(holders(os.getpid()))
    os.utime(made / ".dvc/tmp/rwlock", (1, 1))
    graph.mend_lock(made)
    assert not (made / ".dvc/tmp/rwlock").exists()


# What is remembered


@pytest.fixture
def settled(made, monkeypatch):
    """The campaign, of which is remembered that DVC found it up to date."""
    monkeypatch.setattr(status_cache, "SETTLED", 0)
    assert ask(made) == set()
    return made


def test_dvc_is_not_asked_where_nothing_was_touched(settled, monkeypatch):
    monkeypatch.setattr(graph, "_repo", lambda root: pytest.fail("DVC was asked"))
    assert graph.stale(settled, "r2") == []


@pytest.mark.parametrize(
    "text",
    ["null", '{"cache": "", "settings": [], "stages": {}}', '{"cache": "", "settings": {}, "stages": {"plan": 5}}'],
)
def test_a_memory_that_is_none_is_none(settled, text):
    (settled / status_cache.FILE).write_text(text)
    assert ask(settled) == set()


def test_where_nothing_can_be_written_nothing_is_remembered(made, monkeypatch):
    monkeypatch.setattr(status_cache, "FILE", Path("dvc.yaml/fresh.json"))
    assert ask(made) == set()


def test_a_damaged_list_of_a_folders_files_in_dvcs_cache_is_left_to_dvc(made):
    entry = lockfile.read(made)["judge@r1"]
    oid = next(oid for oid in status_cache.OID.findall(entry.partition("    outs:")[2]) if oid.endswith(".dir"))
    listing = made / ".dvc/cache/files/md5" / oid[:2] / oid[2:]
    listing.chmod(0o644)
    listing.write_bytes(listing.read_bytes()[:20])
    assert ask(made) == {"judge@r1"}


def test_a_cache_outside_a_project_that_was_moved_is_looked_for_where_dvc_would(settled, monkeypatch):
    (settled / ".dvc/cache").rename(settled.parent / "cache")
    (settled / ".dvc/config.local").write_text("[cache]\n    dir = ../../cache\n")
    assert ask(settled) == set()
    moved = settled.parent / "below/project"
    moved.parent.mkdir()
    settled.rename(moved)
    monkeypatch.chdir(moved)
    assert len(ask(moved)) == 22


def touch(path):
    os.utime(path)


def flip(path):
    content = path.read_bytes()
    path.unlink()  # it may be a link
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


EDITS = {
    "a table": lambda root: flip(next((root / "data/round=r1/judgments").iterdir())),
    "a table, deleted": lambda root: next((root / "data/round=r2/pairs").iterdir()).unlink(),
    "a file beside a table": lambda root: (root / "data/round=r1/filtered/more").write_text(""),
    "a model": lambda root: flip(next((root / "data/round=r1/model").iterdir())),
    "a manifest, touched": lambda root: touch(root / "data/round=r2/manifests/gate.json"),
    "metrics, deleted": lambda root: (root / "data/round=r2/metrics/gate.json").unlink(),
    "params.yaml": lambda root: projects.set_values(root, "r2", ["filter.threshold.min_reward=0.9"]),
    "a recipe": lambda root: projects.write_recipe(root, "small", projects.SMALL | {"pair": {"best_worst": {"min_margin": 0.5}}}),
    "code": lambda root: (root / "tasks/pair/best_worst.py").open("a").write("\nX = 1\n"),
    "a plan": lambda root: flip(root / "data/plan/r1/critique.json"),
    "a command in dvc.yaml": lambda root: (root / "dvc.yaml").write_text(
        (root / "dvc.yaml").read_text().replace("flywheel stage pair", "echo; flywheel stage pair")
    ),
    "an entry of dvc.lock": lambda root: (root / "dvc.lock").write_text(
        (root / "dvc.lock").read_text().replace("path: data/plan/r2/gate.json\n      hash: md5\n      md5: ", "path: data/plan/r2/gate.json\n      hash: md5\n      md5: 0")
    ),
    "an object in DVC's cache": lambda root: max((root / ".dvc/cache/files/md5").glob("*/*.dir")).unlink(),
    "where DVC's cache is": lambda root: (root / ".dvc/config.local").write_text("[cache]\n    dir = ../elsewhere\n"),
    "what DVC leaves out": lambda root: (root / ".dvcignore").write_text("data/round=r2/filtered\n"),
}  # fmt: skip


@pytest.mark.torture("any one edit of data, plans, code, settings, dvc.lock, cache", "stale is what DVC calls stale")
def test_what_is_remembered_never_hides_what_dvc_calls_stale(settled, tmp_path, tries, monkeypatch):
    names = sorted(EDITS)
    for attempt in tries(3 * len(names)):
        name, root = names[attempt % len(names)], tmp_path / str(attempt)
        subprocess.run(["cp", "-al", settled, root], check=True)  # links, so that all is remembered there, too
        for path in (
            "params.yaml",
            "dvc.yaml",
            "dvc.lock",
            ".dvcignore",
            "recipes/small.yaml",
            "tasks/pair/best_worst.py",
        ):
            shutil.copy2(root / path, root / "own")
            (root / "own").replace(root / path)
        monkeypatch.chdir(root)
        EDITS[name](root)
        with_memory = outcome(root)
        (root / status_cache.FILE).unlink()
        assert with_memory == outcome(root), name


def outcome(root):
    """What is stale, or why that cannot be told."""
    try:
        return ask(root)
    except FlywheelError as error:
        return str(error)[:40]
