"""A whole project whose parts lie in a bucket: DVC, queries, diffs, verification and the collection of garbage."""

import json
import shutil
import subprocess
from pathlib import Path

import projects
import pytest
from faulty_store import new_bucket
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.core import commits, objects, pointers, store
from tasks.core.errors import FlywheelError
from tasks.project import garbage
from tasks.project.params import load_params
from tasks.views import catalog, doctor
from tasks.views.verify import read_lock, stored_rounds, verify

DAYS = 2 * garbage.DAY


@pytest.fixture(scope="session")
def in_bucket(tmp_path_factory, apart, keys, server):
    """A project of a base and one round that ran with `data:` in params.yaml, and its bucket. Not to be changed."""
    import boto3

    url = new_bucket(boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1"))
    root = projects.make(tmp_path_factory.mktemp("in_bucket"), rounds=1, git=False)
    projects.rewrite(root, lambda content: content.update(data=url))
    (root / ".dvc/config").write_text((root / ".dvc/config").read_text().replace("no_scm = true", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        projects.run_all()
        projects.commit(root, "start")
        with projects.dvc(root) as repo:
            repo.commit(force=True)
    projects.commit(root, "one round")
    return root, url


@pytest.fixture
def made(in_bucket, tmp_path, monkeypatch, faults):
    """A copy of the project, as the working directory."""
    root = tmp_path / "project"
    shutil.copytree(in_bucket[0], root, symlinks=True)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def own_bucket(made, in_bucket, client):
    """A copy of its objects, in a bucket that may be spoilt; the pointers of the copy lead there."""
    url = new_bucket(client)
    there, here = (u.removeprefix("s3://").split("/") for u in (in_bucket[1], url))
    for entry in client.list_objects_v2(Bucket=there[0])["Contents"]:
        client.copy_object(Bucket=here[0], Key=entry["Key"], CopySource={"Bucket": there[0], "Key": entry["Key"]})
    return objects.place(url)


def command(*arguments):
    """What a command prints; its errors are raised."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    if done.exception:
        raise done.exception
    return done.output


def test_tables_are_pointers_and_models_are_here(made, in_bucket):
    table, model = made / "data/round=r1/responses", made / "data/round=r1/model"
    assert [p.name for p in table.iterdir()] == [pointers.POINTER]
    pointer = json.loads((table / pointers.POINTER).read_text())
    assert pointer["url"] == in_bucket[1]
    assert pointer["parts"] == [
        {k: getattr(p, k) for k in ("file", "bytes", "sha256", "rows")}
        for p in store.find(made, "r1", "responses")[1].parts
    ]
    assert (model / "pointer.json").is_file()
    assert sum(p.stat().st_size for p in made.glob("data/round=*/*/parts.json")) < 20_000


def test_dvc_has_nothing_to_do(made):
    with projects.dvc(made) as repo:
        assert repo.reproduce() == []
        assert repo.status() == {}


def test_tables_are_those_of_a_project_that_keeps_its_parts(made, tmp_path, monkeypatch):
    """The same digests, and in a folder the same files as ever."""
    root = tmp_path / "plain"
    root.mkdir()
    projects.make(root, rounds=1, git=False)
    monkeypatch.chdir(root)
    projects.run_all()
    for name in ("r0", "r1"):
        there, here = (
            {o: (e.digest, e.rows) for m in store.manifests(r, name).values() for o, e in m.outputs.items()}
            for r in (made, root)
        )
        assert there == here
    assert not list(root.glob("data/**/parts.json"))
    assert not (root / pointers.CONFIGURED).exists()


def test_queries_read_the_bucket_and_nothing_else(made, faults):
    rows = catalog.query(made, "select count(*) as n, count(distinct prompt_id) as prompts from responses").to_pylist()
    assert rows == [{"n": 36, "prompts": 12}]
    assert catalog.query(made, "select count(*) as n from judgments join responses on response_id = responses.id")["n"][
        0
    ].as_py()
    faults.seen.clear()
    catalog.query(made, "select round, count(*) from responses group by all")
    parts = [part for name in ("r0", "r1") for part in store.find(made, name, "responses")[1].parts]
    touched = {path.rpartition("/data/")[2] for _, path in faults.seen}
    assert touched == set(map(pointers.object_name, parts))


def test_queries_stay_locked(made, in_bucket):
    """Neither an object of another table nor a file of this machine can be read, and no setting can be changed."""
    other = pointers.object_name(store.find(made, "r1", "judgments")[1].parts[0])
    hostile = (
        f"select * from read_parquet('{in_bucket[1]}/{other}'), responses",
        "select * from read_text('/etc/passwd'), responses",
        "select * from responses, read_parquet('s3://elsewhere/x.parquet')",
        "select * from read_blob('s3://elsewhere/*'), responses",
    )
    for sql in hostile:
        with pytest.raises(FlywheelError, match="Permission|disabled|cannot"):
            catalog.query(made, sql)
    with pytest.raises(FlywheelError, match="not a query"):
        catalog.query(made, "set enable_external_access = true; from responses")


def test_other_readers(made):
    assert "responses" in command("diff", "r0", "r1", "--table", "responses")
    assert "responses" in command("trace", catalog.query(made, "select id from responses limit 1")["id"][0].as_py())
    assert "r1" in command("report")
    changes = command("diff", "r0", "r1", "--sql", "select change, count(*) as rows from diff_responses group by all")
    assert "added" in changes
    lock = read_lock(made)
    found = verify(made, stored_rounds(made, lock), lock)
    assert found.findings == []
    assert found.files > len(list(made.glob("data/round=*/**/*.json")))
    command("sql", "--write-views", "views.duckdb")
    assert Path("views.duckdb").stat().st_size


def test_a_clone_runs_nothing(made, tmp_path, monkeypatch, capfd):
    """Without DVC's cache or remote: every stage takes what the bucket has, byte for byte."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", made, clone], check=True)
    monkeypatch.chdir(clone)
    projects.run_all()
    said = capfd.readouterr().out
    assert said.count("taken from s3://") == sum(1 for _ in made.glob("data/round=*/manifests/*.json"))
    assert projects.digests(clone) == projects.digests(made)


# Garbage


@pytest.fixture
def later(monkeypatch):
    """Makes it two days later for the collector."""
    now = garbage._now

    def pass_days():
        monkeypatch.setattr(garbage, "_now", lambda place: now(place) + DAYS)

    return pass_days


def remade(root, **settings):
    """Runs the round with other parameters."""
    projects.set_values(root, "r1", [f"{k.replace('__', '.')}={v}" for k, v in settings.items()])
    projects.run_all()
    with projects.dvc(root) as repo:
        repo.commit(force=True)


def test_what_a_revision_names_is_kept(made, own_bucket, monkeypatch, later):
    monkeypatch.setenv("DATA_URL", own_bucket.url)
    before = {e.name for e in own_bucket.entries()}
    remade(made, generate__sample__samples=2)
    projects.commit(made, "two samples")
    later()
    assert garbage.find(made, own_bucket).unnamed == []
    shutil.rmtree(made / ".dvc/cache")  # manifests of revisions are in the bucket, too
    assert garbage.find(made, own_bucket).unnamed == []
    subprocess.run(["git", "worktree", "add", "--quiet", "../other", "HEAD~1"], check=True)
    assert before <= {e.name for e in own_bucket.entries()}


def test_what_nothing_names_goes_when_it_is_old_and_asked_for(made, own_bucket, monkeypatch, later):
    monkeypatch.setenv("DATA_URL", own_bucket.url)
    kept = {e.name for e in own_bucket.entries()}
    saved = shutil.copytree(made, made.parent / "saved", symlinks=True)
    remade(made, generate__sample__samples=2)
    added = {e.name for e in own_bucket.entries()} - kept
    numbered = {name.rpartition("-")[0] for name in kept if name.startswith(commits.COMMITS)}
    again = {name for name in added if name.rpartition("-")[0] in numbered}
    gone = added - again - {commits.PROBE}  # commits of what is kept are numbered, so all of them stay
    assert any(name.startswith(commits.PARTS) for name in gone)
    assert garbage.find(made, own_bucket).unnamed == [], "the working tree names it"
    shutil.rmtree(made)
    shutil.copytree(saved, made, symlinks=True)
    monkeypatch.chdir(made)
    found = garbage.find(made, own_bucket)
    assert found.unnamed == []
    assert found.young == len(gone)
    later()
    text = command("gc")
    assert "Nothing was deleted" in text
    assert ", results of r1:" in text
    assert {e.name for e in own_bucket.entries()} == kept | added
    assert f"{len(gone)} objects were deleted" in command("gc", "--yes")
    assert {e.name for e in own_bucket.entries()} == (kept | added) - gone
    assert "nothing to delete" in command("gc")


def test_what_was_put_again_meanwhile_stays(bucket, tmp_path):
    bucket.put_once("parts/aa/x", b"x")
    [entry] = bucket.entries("parts/")
    before = objects.Entry(entry.name, entry.bytes, entry.modified - DAYS, entry.tag)
    assert garbage.delete(tmp_path, garbage.Garbage(bucket, 0, 0, [before], 0)) == 0
    assert garbage.delete(tmp_path, garbage.Garbage(bucket, 0, 0, [entry], 0)) == 1
    assert garbage.delete(tmp_path, garbage.Garbage(bucket, 0, 0, [entry], 0)) == 0


def test_a_listing_that_lags_loses_nothing(made, own_bucket, monkeypatch, later, faults, client):
    monkeypatch.setenv("DATA_URL", own_bucket.url)
    own_bucket.put_once("parts/00/old", b"x")
    faults.let_listings_lag(client, own_bucket.url.split("/")[2])
    own_bucket.delete("parts/00/old")
    remade(made, generate__sample__samples=2)
    later()
    found = garbage.find(made, own_bucket)
    assert [e.name for e in found.unnamed] == ["parts/00/old"]
    assert garbage.delete(made, found) == 0
    faults.well()
    assert catalog.query(made, "select count(*) as n from responses")["n"][0].as_py() == 24


def test_a_stage_at_work_keeps_its_parts(made, own_bucket, later, monkeypatch):
    part = {"file": "a.parquet", "bytes": 1, "sha256": "ab" * 32, "rows": 1}
    name = pointers.object_name(store.Part(**part))
    own_bucket.put_once(name, b"x")
    own_bucket.put_once("receipts/r1-judge-abc/rows/000000.json", json.dumps({"piece": 0, "parts": [part]}).encode())
    monkeypatch.setattr(garbage, "DAY", -1.0)  # as if it were a day ago
    names = {e.name for e in garbage.find(made, own_bucket).unnamed}
    assert {name, "receipts/r1-judge-abc/rows/000000.json"} <= names
    monkeypatch.undo()
    monkeypatch.chdir(made)
    entries = list(own_bucket.entries())
    old = [objects.Entry(e.name, e.bytes, e.modified - DAYS if e.name == name else e.modified, e.tag) for e in entries]
    monkeypatch.setattr(type(own_bucket), "entries", lambda place, prefix="": iter(old))
    assert name not in {e.name for e in garbage.find(made, own_bucket).unnamed}


def test_a_shallow_clone_is_refused(made, own_bucket, tmp_path):
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{made}", tmp_path / "shallow"], check=True)
    with pytest.raises(FlywheelError, match="git fetch --unshallow"):
        garbage.find(tmp_path / "shallow", own_bucket)


def test_locks_in_any_form_and_of_any_revision_are_read():
    lock = (
        "schema: '2.0'\nstages:\n  judge@r1:\n    cmd: x\n    outs:\n    - path: data/round=r1/manifests/judge.json\n"
        "      hash: md5\n      md5: aa\n      size: 3\n    - path: data/round=r1/judgments\n      hash: md5\n      md5: bb.dir\n"
    )
    assert list(garbage._small_files(lock)) == [("manifests", "aa")]
    flow = '{"schema": "2.0", "stages": {"a": {"outs": [{"path": "data/round=r1/manifests/judge.json", "md5": "aa"}]}}}'
    assert list(garbage._small_files(flow)) == [("manifests", "aa")]
    conflict = lock.replace("      md5: aa\n", "<<<<<<< ours\n      md5: aa\n=======\n      md5: cc\n>>>>>>> theirs\n")
    assert list(garbage._small_files(conflict)) == [("manifests", "aa"), ("manifests", "cc")]
    with pytest.raises(FlywheelError, match="cannot be read"):
        list(garbage._small_files("stages: [manifests/"))


def test_without_a_bucket_there_is_nothing_to_collect(made, monkeypatch):
    projects.rewrite(made, lambda content: content.pop("data"))
    command("plan")
    with pytest.raises(FlywheelError, match="parts of this project are in its folder"):
        command("gc")


# Doctor and params.yaml


def findings(root):
    return [(f.status, f.text) for f in doctor.bucket(root, None)]


def test_the_doctor_probes_the_bucket(made, own_bucket, monkeypatch, faults):
    monkeypatch.setenv("DATA_URL", own_bucket.url)
    before = own_bucket.names()
    assert findings(made) == [("ok", f"{own_bucket.url} can be written and read, and creates an object once only")]
    assert {*own_bucket.names()} - {*before} <= {commits.PROBE}
    faults.ignores_conditions = True
    [(status, text)] = findings(made)
    assert status == "broken"
    assert "If-None-Match" in text
    faults.ignores_conditions = False
    monkeypatch.setenv("DATA_URL", "s3://flywheel-nowhere/x")
    [(status, text)] = findings(made)
    assert status == "broken"
    assert "no such bucket" in text
    monkeypatch.setenv("DATA_URL", "https://example.org")
    assert findings(made)[0][0] == "broken"


@pytest.mark.parametrize(
    "value", ["gs://x/y", "data/here", 3, "s3://me:secret@bucket/x", "https://me:secret@host/x", "s3://"]
)
def test_params_that_name_no_bucket(made, value):
    projects.rewrite(made, lambda content: content.update(data=value))
    with pytest.raises(FlywheelError, match=r"data: ") as error:
        load_params(made)
    assert "secret" not in str(error.value)
