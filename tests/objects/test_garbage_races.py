"""What the collection of garbage must not delete: results that a merge left out, that are as young as a commit, or that it cannot
know of.
"""

import json
import shutil
import subprocess
import time
from dataclasses import replace

import pytest
from test_committing import run

from tasks.core import commits, objects, pointers, store
from tasks.core.errors import FlywheelError
from tasks.core.plan import Plan
from tasks.project import garbage

DAYS = 2 * garbage.DAY
MANIFEST = "data/round=r1/manifests/filter.json"


@pytest.fixture
def root(tmp_path, url, faults, monkeypatch):
    """A folder under git whose stages write to the bucket."""
    monkeypatch.setenv("DATA_URL", url)
    (tmp_path / "here").mkdir()
    git(tmp_path / "here", "init", "--quiet", "--initial-branch", "main")
    return tmp_path / "here"


@pytest.fixture
def aged(bucket, monkeypatch):
    """Makes listings say that objects are two days older, but those whose name holds one of some texts."""
    entries = type(bucket).entries

    def age(*young):
        def older(place, prefix=""):
            for entry in entries(place, prefix):
                keeps = any(text in entry.name for text in young)
                yield entry if keeps else replace(entry, modified=entry.modified - DAYS)

        monkeypatch.setattr(type(bucket), "entries", older)

    return age


def git(root, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


def revise(root, number):
    """Runs the stage with a plan of its own, and commits a dvc.lock that names its result."""
    run(root, f"row{number}", plan=Plan(round="r1", stage="filter", seed=number))
    md5 = garbage._md5((root / MANIFEST).read_bytes())
    (root / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  filter@r1:\n    cmd: x\n    outs:\n"
        f"    - path: {MANIFEST}\n      hash: md5\n      md5: {md5}\n      size: 3\n"
    )
    git(root, "add", "dvc.lock")
    git(root, "commit", "--quiet", "--message", f"revision {number}")
    return {pointers.object_name(p) for o in store.manifests(root, "r1")["filter"].outputs.values() for p in o.parts}


def unnamed(root, bucket):
    return {entry.name for entry in garbage.find(root, bucket).unnamed}


@pytest.mark.parametrize("moved", [False, True])
def test_a_revision_that_a_merge_left_out_keeps_its_parts(root, bucket, aged, moved):
    revise(root, 1)
    git(root, "checkout", "--quiet", "-b", "side")
    left_out = revise(root, 2)
    git(root, "checkout", "--quiet", "main")
    revise(root, 3)
    git(root, "merge", "--quiet", "--strategy", "ours", "--message", "main's", "side")
    git(root, "branch", "-D", "side")
    if moved:  # the project is in a folder of its repository by now
        (root / "project").mkdir()
        git(root, "mv", "dvc.lock", "project/dvc.lock")
        git(root, "commit", "--quiet", "--message", "moved")
        (root / "data").rename(root / "project/data")
        root = root / "project"
    shutil.rmtree(next(p for p in (root / ".git/logs", root.parent / ".git/logs") if p.is_dir()))
    aged()
    assert not left_out & unnamed(root, bucket)


def test_what_is_staged_or_in_another_worktree_is_kept(root, bucket, aged):
    revise(root, 1)
    git(root, "worktree", "add", "--quiet", "../other")
    other = revise(root, 2)
    shutil.copy(root / "dvc.lock", root.parent / "other/dvc.lock")
    git(root, "reset", "--quiet", "--hard", "HEAD~1")
    staged = revise(root, 3)
    git(root, "reset", "--quiet", "--soft", "HEAD~1")
    (root / "dvc.lock").unlink()
    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".git/logs")
    aged()
    assert not (other | staged) & unnamed(root, bucket)


@pytest.mark.parametrize("where", ["tmpabc", "standalone/tmpabc"])
@pytest.mark.parametrize("below", ["", "project"])
def test_an_experiment_at_work_keeps_its_parts(root, bucket, aged, where, below):
    """DVC runs it in a clone of the repository below .dvc, for days maybe."""
    project = root / below
    made = project / ".dvc/tmp/exps" / where / below
    made.mkdir(parents=True)
    (project / "dvc.lock").touch()
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "start")
    run(made, "a")
    elsewhere = root.parent / "elsewhere"
    made.joinpath("data").rename(elsewhere)
    aged()
    assert unnamed(project, bucket)
    elsewhere.rename(made / "data")
    assert not unnamed(project, bucket)


@pytest.mark.parametrize("broken", ["owner", "object"])
def test_a_git_that_fails_deletes_nothing(root, bucket, aged, monkeypatch, broken):
    revise(root, 1)
    shutil.rmtree(root / "data")
    if broken == "owner":  # what git says in a folder of somebody else
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    else:
        [shutil.rmtree(path) for path in (root / ".git/objects").glob("[0-9a-f]*") if len(path.name) == 2]
    aged()
    with pytest.raises(FlywheelError, match=r"`git .*nothing is deleted"):
        garbage.find(root, bucket)


def test_a_commit_of_today_keeps_parts_that_took_days(root, bucket, aged):
    """Another clone's stage whose first pieces are two days old, and that deleted its receipts a moment ago."""
    run(root.parent / "elsewhere", "a")
    aged(commits.COMMITS)
    assert unnamed(root, bucket) == set()
    aged()
    assert any(name.startswith(commits.PARTS) for name in unnamed(root, bucket))


def test_a_commit_that_was_taken_today_keeps_its_parts(root, bucket, aged):
    """Another clone took what nothing names any more, and pushed nothing yet."""
    run(root.parent / "one", "a")
    aged()
    assert len(unnamed(root, bucket)) > 3
    puts = []
    put_file = type(bucket).put_file

    def noted(place, name, path):
        puts.append(name)
        put_file(place, name, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bucket), "put_file", noted)
        assert not run(root.parent / "two", "never")[1]
    aged(*puts)
    assert puts
    assert unnamed(root, bucket) == set()


def test_ages_are_by_the_clock_of_the_store(tmp_path, bucket, monkeypatch):
    bucket.put_once("parts/aa/x", b"x")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + DAYS)
    found = garbage.find(tmp_path, bucket)
    assert (found.unnamed, found.young) == ([], 1)
    assert bucket.names() == ["parts/aa/x"]


def test_a_kill_in_the_middle_leaves_nothing_that_names_what_is_gone(tmp_path, bucket, aged, monkeypatch):
    part = {"file": "a.parquet", "bytes": 1, "sha256": "ab" * 32, "rows": 1}
    name = pointers.object_name(store.Part(**part))
    receipt = "receipts/r1-judge-abc/rows/000000.json"
    bucket.put_once(name, b"x")
    bucket.put_once(receipt, json.dumps({"piece": 0, "parts": [part]}).encode())
    aged()
    found = garbage.find(tmp_path, bucket)
    monkeypatch.undo()
    assert {entry.name for entry in found.unnamed} == {name, receipt}
    found = replace(found, unnamed=[replace(e, modified=e.modified + DAYS) for e in found.unnamed])
    delete = type(bucket).delete

    def killed(place, name):
        if name.startswith(commits.PARTS):
            raise KeyboardInterrupt
        delete(place, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(bucket), "delete", killed)
        garbage.delete(tmp_path, found)
    assert bucket.names() == [name]


def test_what_a_stage_took_since_stays(root, bucket, aged, monkeypatch):
    """It was found to be garbage, and a run took it before it was deleted."""
    run(root.parent / "one", "a")
    aged()
    found = garbage.find(root, bucket)
    monkeypatch.undo()
    monkeypatch.setenv("DATA_URL", bucket.url)
    found = replace(found, unnamed=[replace(e, modified=e.modified + DAYS) for e in found.unnamed])
    run(root, "never")
    garbage.delete(root, found)
    assert store.read(root, "r1", "filtered")["id"].to_list() == ["a"]


def test_marks_of_folders_are_left_alone(tmp_path, bucket, client, aged):
    """Consoles and tools that copy put objects of no bytes whose names end in a slash."""
    name, _, prefix = bucket.url.removeprefix(objects.SCHEME).partition("/")
    client.put_object(Bucket=name, Key=f"{prefix}/parts/", Body=b"")
    bucket.put_once("parts/aa/x", b"x")
    aged()
    assert unnamed(tmp_path, bucket) == {"parts/aa/x"}
