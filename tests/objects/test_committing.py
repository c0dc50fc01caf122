"""A stage's result in a bucket: one commit wins, a put that fails leaves the old version, and what is there is taken."""

import hashlib
import json
from threading import Barrier, Thread

import polars as pl
import pytest
from faulty_store import puts
from filelock import FileLock

from tasks.core import _parts, commits, objects, pointers, remembered, store
from tasks.core.errors import StoreError
from tasks.core.frames import frame
from tasks.core.objects import Unreachable
from tasks.core.plan import Plan
from tasks.core.tables import filtered
from tasks.views import catalog
from tasks.views import verify as verifying

PLAN = Plan(round="r1", stage="filter")
TABLE = "data/round=r1/filtered"


def rows(*ids):
    return pl.DataFrame(
        [{"id": i, "prompt_id": "p", "kept": True, "rank": 1, "score": 1.0} for i in ids],
        schema_overrides={"rank": pl.Int32},
    ).pipe(lambda found: pl.concat([frame(filtered).collect(), found], how="diagonal_relaxed"))


@pytest.fixture
def project(tmp_path, url, faults, monkeypatch):
    """Makes projects that keep their parts in one bucket."""
    monkeypatch.setenv("DATA_URL", url)

    def make(name="here"):
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make


def run(root, *ids, plan=PLAN, begun=None, seconds=0.0):
    """What `run_stage` does with the store; returns the manifest in force, and whether anything was computed."""
    with store.writing(root, "r1", "filter") as draft:
        if taken := draft.restored(plan, {}):
            return taken, False
        if begun:
            begun()
        metrics = draft.table(filtered, rows(*ids))
        weights = draft.folder("model")
        (weights / "weights").write_text("w" * 100)
        draft.describe_folder("model")
        draft.file("metrics/filter.json", json.dumps(metrics))
        made = store.Manifest(
            round="r1", stage="filter", plan=plan, outputs=draft.outputs, inputs={}, versions={}, metrics={}, tokens={},
            seconds={"run": seconds}, started="", finished="",
        )  # fmt: skip
        return draft.commit(made), True


def read(root):
    return store.read(root, "r1", "filtered")["id"].to_list()


def test_a_folder_and_a_bucket_have_the_same_rows_and_digests(project, monkeypatch, bucket):
    there = project("there")
    made = run(there, "a", "b")[0]
    monkeypatch.delenv("DATA_URL")
    here = project("here")
    plain = run(here, "a", "b")[0]
    assert read(here) == read(there) == ["a", "b"]
    assert made.outputs == plain.outputs
    assert [p.name for p in sorted((there / TABLE).iterdir())] == [pointers.POINTER]
    assert [p.name for p in sorted((here / TABLE).iterdir())] == ["part-00000.parquet"]
    [part] = plain.outputs["filtered"].parts
    assert bucket.read(pointers.object_name(part)) == (here / TABLE / part.file).read_bytes()
    assert not (here / TABLE / pointers.POINTER).exists()


def test_two_drivers_race_for_one_commit(project, capsys, monkeypatch):
    """One wins; the other takes its result and says so."""
    roots, barrier, manifests = [project("one"), project("two")], Barrier(2), {}
    put = commits._put_parts

    def together(*arguments):
        put(*arguments)
        barrier.wait()

    monkeypatch.setattr(commits, "_put_parts", together)

    def drive(root, ids, seconds):
        manifests[root] = run(root, *ids, seconds=seconds)

    threads = [
        Thread(target=drive, args=(root, ids, s)) for root, ids, s in zip(roots, ("ab", "cd"), (1.0, 2.0), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [(one, _), (two, _)] = manifests.values()
    assert one == two
    assert read(roots[0]) == read(roots[1]) in (["a", "b"], ["c", "d"])
    texts = {(root / "data/round=r1/manifests/filter.json").read_bytes() for root in roots}
    assert len(texts) == 1
    said = capsys.readouterr().out
    assert said.count("committed it first, at") == 1
    assert "filter@r1: taken from s3://" in said


def test_a_clone_takes_what_was_committed(project, faults, capsys):
    one, two = project("one"), project("two")
    made, _ = run(one, "a")
    faults.seen.clear()
    taken, computed = run(two, "never")
    assert (taken, computed) == (made, False)
    assert read(two) == ["a"]
    assert store.folder(two, "r1", "model")[0].joinpath("weights").read_text() == "w" * 100
    assert "taken from" in capsys.readouterr().out
    assert not any(f"{commits.COMMITS}" in path for method, path in faults.seen if method == "PUT")


def test_an_edit_that_is_taken_back_finds_its_result(project):
    root, other = project(), Plan(round="r1", stage="filter", seed=7)
    first, _ = run(root, "a")
    run(root, "b", plan=other)
    assert read(root) == ["b"]
    assert run(root, "never") == (first, False)
    assert read(root) == ["a"]


def test_what_is_here_is_made_again_when_it_is_run_again(project):
    one, two = project("one"), project("two")
    run(one, "a")
    again, computed = run(one, "b")
    assert computed
    assert read(one) == ["b"]
    assert run(two) == (again, False)  # the later one counts


@pytest.mark.torture(
    "a put to the bucket that fails, in the middle of a stage's result", "the old version, nothing committed"
)
def test_a_put_that_fails_in_the_middle(project, faults, bucket, client, tries):
    kinds = ("cut", "503")
    for attempt in tries(60):
        root = project(f"try{attempt}")
        plan = Plan(round="r1", stage="filter", seed=attempt)
        run(root, "old", plan=Plan(round="r1", stage="filter", seed=1000 + attempt))
        skipped = [
            (attempt + attempt // 10) % 5
        ]  # which put of a result is the first that fails; the probe is none of it

        def fault(environ, skipped=skipped, kind=kinds[(attempt + attempt // 10) % 2]):
            if environ["REQUEST_METHOD"] != "PUT" or environ["PATH_INFO"].endswith("/probe"):
                return None
            skipped[0] -= 1
            return kind if skipped[0] < 0 else None

        faults.fault = fault
        with pytest.raises(Unreachable):
            run(root, f"new{attempt}", plan=plan)
        faults.fault = None
        assert read(root) == ["old"]
        assert not bucket.names(f"{commits.COMMITS}{commits.identity(plan, {})}")
        assert run(root, f"new{attempt}", plan=plan)[1]
        assert read(root) == [f"new{attempt}"]


def test_a_commit_whose_answer_is_lost_is_the_drivers_own(project, faults, capsys):
    faults.fault = puts("lost", commits.COMMITS)
    assert run(project(), "a")[1]
    assert "taken" not in capsys.readouterr().out


def test_a_kill_after_the_commit_costs_nothing(project, monkeypatch):
    root = project()
    run(root, "old", plan=Plan(round="r1", stage="filter", seed=7))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store.Draft, "_publish", lambda draft: (_ for _ in ()).throw(KeyboardInterrupt))
        run(root, "new")
    assert read(root) == ["old"]
    assert not run(root, "never")[1]
    assert read(root) == ["new"]


def test_a_listing_that_lags_changes_nothing(project, faults, client, url):
    faults.let_listings_lag(client, url.split("/")[2])  # it stays empty
    one, two = project("one"), project("two")
    made, _ = run(one, "a")
    assert objects.place(url).names() == []
    assert run(two) == (made, False)
    assert read(two) == ["a"]


def test_a_store_that_replaces_objects_is_refused_before_anything_is_made(project, faults):
    root = project()
    faults.ignores_conditions = True
    with pytest.raises(StoreError, match="If-None-Match"):
        run(root, "a", begun=lambda: pytest.fail("it was computed"))
    faults.ignores_conditions = False
    assert run(root, "a")[1]


def test_a_store_that_is_busy_is_not_taken_for_one_that_replaces_objects(faults, bucket):
    assert commits.creates_once(bucket)
    puts_of_probe = []

    def fault(environ):  # each first attempt fails
        puts_of_probe.append(environ["PATH_INFO"])
        return "503" if len(puts_of_probe) % 2 else None

    faults.fault = fault
    assert commits.creates_once(bucket)


@pytest.mark.parametrize(
    ("file", "part"),
    [("../../../../../out", None), (None, "../../../../../../out"), ("{tmp}/out", None), (None, "{tmp}/out")],
)
def test_a_commit_writes_nothing_outside_of_its_place(project, bucket, tmp_path, file, part):
    file, part = (name and name.format(tmp=tmp_path) for name in (file, part))
    made, _ = run(project("one"), "a")
    name = f"{commits.COMMITS}{commits.identity(PLAN, {})}-0.json"
    commit = commits.Commit.model_validate_json(bucket.read(name))
    weights = made.outputs["model"].parts[0]
    if part:
        made.outputs["model"].parts[0] = weights.model_copy(update={"file": part})
        put(bucket, commit.files, "manifests/filter.json", made.text.encode())
    else:
        put(bucket, commit.files, file, b"w")
    bucket.delete(name)
    bucket.put_once(name, commit.model_dump_json().encode())
    assert run(project("two"), "b")[1], "it is made again"
    assert not list(tmp_path.rglob("out"))


def test_a_commit_of_another_plan_is_not_taken(project, bucket):
    """Somebody copied it, or it was put under a wrong name."""
    other = Plan(round="r1", stage="filter", seed=7)
    run(project("one"), "a", plan=other)
    there, here = (f"{commits.COMMITS}{commits.identity(plan, {})}-0.json" for plan in (other, PLAN))
    bucket.put_once(here, bucket.read(there))
    root = project("two")
    assert run(root, "b")[1]
    assert read(root) == ["b"]


def put(bucket, files, path, content):
    """Names a small file in a commit."""
    files[path] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    bucket.put_once(f"{commits.FILES}{files[path]}", content)


@pytest.mark.parametrize("lost", ["part", "manifest", "weights"])
def test_a_commit_that_lost_something_is_made_again(project, bucket, lost):
    one, two = project("one"), project("two")
    made, _ = run(one, "a")
    names = {
        "part": pointers.object_name(made.outputs["filtered"].parts[0]),
        "weights": pointers.object_name(made.outputs["model"].parts[0]),
        "manifest": commits.FILES
        + commits.latest(bucket, commits.identity(PLAN, {}))[1].files["manifests/filter.json"],
    }
    bucket.delete(names[lost])
    assert run(two, "a")[1]
    assert read(two) == ["a"]
    assert run(project("three"))[1] is False


# Readers


def test_bytes_are_checked_once_and_then_remembered(project, faults):
    root = project()
    run(root, "a")

    def gets():
        faults.seen.clear()
        store.scan(root, "r1", "filtered")
        return [path for method, path in faults.seen if method == "GET" and commits.PARTS in path]

    assert len(gets()) == 1
    assert gets() == []
    (root / remembered.FILE).unlink()
    assert len(gets()) == 1


def test_a_part_that_changed_or_is_gone_is_named_and_put_again(project, bucket, client, url):
    root = project()
    made, _ = run(root, "a")
    assert read(root) == ["a"]
    name = pointers.object_name(made.outputs["filtered"].parts[0])
    key = {"Bucket": url.split("/")[2], "Key": f"data/{name}"}
    good = bucket.read(name)
    client.put_object(**key, Body=good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"{name}.* is not what was written"):
        read(root)
    (root / "data/round=r1/manifests/filter.json").unlink()
    assert run(root, "a")[1], "a commit whose part was found to be changed is not taken"
    assert read(root) == ["a"]
    client.put_object(**key, Body=good[:-1])
    with pytest.raises(StoreError, match="bytes, its manifest says"):
        read(root)
    bucket.delete(name)
    with pytest.raises(StoreError, match="is missing.*run its stage again"):
        read(root)
    assert [(f.kind, f.path) for f in verifying.verify(root, ["r1"], None).findings] == [
        ("missing", bucket.address(name))
    ]
    assert run(root, "a")[1]
    assert read(root) == ["a"]
    assert verifying.verify(root, ["r1"], None).findings == []


def test_parts_of_workers_that_are_gone_are_not_committed(project, bucket):
    """Workers put them, and something deleted one before the driver came to its end."""
    root = project()
    given = run(project("other"), "a")[0].outputs["filtered"]
    name = pointers.object_name(given.parts[0])
    content = bucket.read(name)
    bucket.delete(name)

    def take():
        with store.writing(root, "r1", "filter") as draft:
            draft.table(filtered, store.Checked(given, pytest.fail))

    with pytest.raises(StoreError, match=f"{name}.* is missing"):
        take()
    bucket.put_once(name, content)
    take()


def test_a_folder_may_have_a_file_of_any_name(project, bucket):
    """One that is named as the pointers of tables are, too."""
    roots = [project("one"), project("two")]
    for root in roots:
        with store.writing(root, "r1", "filter") as draft:
            if draft.restored(PLAN, {}):
                continue
            (draft.folder("model") / pointers.POINTER).write_text("[]")
            draft.describe_folder("model")
            draft.commit(
                store.Manifest(
                    round="r1", stage="filter", plan=PLAN, outputs=draft.outputs, inputs={}, versions={}, metrics={},
                    tokens={}, seconds={}, started="", finished="",
                )
            )  # fmt: skip
    for root in roots:
        assert (store.folder(root, "r1", "model")[0] / pointers.POINTER).read_text() == "[]"
    assert bucket.read(pointers.object_name(store.find(roots[1], "r1", "model")[1].parts[0])) == b"[]"


def test_the_extent_of_a_part_has_the_empty_id():
    groups = [_parts.RowGroup(1, 1, "", ""), _parts.RowGroup(2, 1, "a", "b")]
    assert _parts.extent(groups) == ("", "b")
    assert _parts.extent(groups[:1]) == ("", "")


def test_a_pointer_of_another_version_is_refused(project):
    root = project()
    run(root, "a")
    pointer = root / TABLE / pointers.POINTER
    old = pointer.read_text()
    run(root, "b")
    pointer.write_text(old)
    with pytest.raises(StoreError, match="another version than its manifest"):
        store.steady(root, ["r1"], lambda: store.scan(root, "r1", "filtered"), patience=0)
    pointer.write_text("{}")
    with pytest.raises(StoreError, match="no pointer to parts"):
        store.paths(root / TABLE, store.find(root, "r1", "filtered")[1])


def test_rounds_in_two_places_are_read_side_by_side(project, url, monkeypatch):
    root = project()
    run(root, "a")
    monkeypatch.setenv("DATA_URL", f"{url}/elsewhere")
    assert read(root) == ["a"]
    run(root, "b")
    assert read(root) == ["b"]
    monkeypatch.delenv("DATA_URL")
    assert read(root) == ["b"]
    run(root, "c")
    assert read(root) == ["c"]
    assert not (root / TABLE / pointers.POINTER).exists()


def test_what_is_no_bucket_is_refused(project, monkeypatch):
    monkeypatch.setenv("DATA_URL", "/tmp/somewhere")
    with pytest.raises(StoreError, match="DATA_URL=/tmp/somewhere: name a bucket"):
        run(project(), "a")
    monkeypatch.setenv("DATA_URL", "https://me:secret@example.org/data")
    with pytest.raises(StoreError, match="DATA_URL=https://example.org/data: name a bucket"):
        run(project("other"), "a")


def test_scratch_projects_keep_to_themselves(project, faults):
    root = project("scratch") / ".flywheel/replay"
    root.mkdir(parents=True)
    run(root, "a")
    assert faults.seen == []
    assert (root / TABLE / "part-00000.parquet").is_file()


def test_a_lock_is_enough_for_drivers_of_one_folder(project):
    """On one machine the second driver of a folder is told that it is busy, as ever."""
    root = project()
    run(root, "a")
    lock = FileLock(root / "data/round=r1/.staging/filter/lock")
    with lock, pytest.raises(store.Busy):
        run(root, "b")


def test_threads_share_a_file_and_read_each_at_its_own_place():
    """DuckDB seeks and reads in one file from several threads: one that moves the place of another reads nothing."""
    content = bytes(range(256)) * 40
    file = pointers._Shared(len(content), lambda start, end: content[start:end])
    barrier, read = Barrier(8, timeout=30), {}

    def reader(place):
        file.seek(place)
        barrier.wait()
        read[place] = (file.tell(), file.read(100), file.tell())

    threads = [Thread(target=reader, args=(n * 1000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {n: (n, content[n : n + 100], n + 100) for n in range(0, 8000, 1000)}
    assert file.seek(-3, 2) == len(content) - 3
    assert file.read() == content[-3:]
    assert file.read(1) == b""


def test_a_table_of_many_parts_is_queried_by_all_threads(project, monkeypatch):
    root = project()
    (root / "params.yaml").write_text("bases: {}\nrounds: {}\n")
    monkeypatch.setattr(_parts, "ROWS_PER_GROUP", 10)
    monkeypatch.setattr(_parts, "GROUPS_PER_PART", 2)
    ids = [f"{n:04}" for n in range(300)]
    made, _ = run(root, *ids)
    assert len(made.outputs["filtered"].parts) == 15
    for _ in range(5):
        found = catalog.query(root, "select id from filtered where round = 'r1' order by id")
        assert found["id"].to_pylist() == ids
    assert read(root) == ids
    assert len(store.scan(root, "r1", "filtered")[0].filter(pl.col("id") == "0007").collect()) == 1


def test_a_scan_goes_over_folders_and_buckets(project, monkeypatch):
    """As a report does over all rounds, in their order."""
    one, two, three = project("one"), project("two"), project("three")
    run(one, "a")
    run(two, "b", plan=Plan(round="r1", stage="filter", seed=2))
    monkeypatch.delenv("DATA_URL")
    run(three, "c")
    files = [
        path for root in (one, three, two) for path in store.paths(root / TABLE, store.find(root, "r1", "filtered")[1])
    ]
    found = pointers.scan(files, include_file_paths="file").select("id", "file").collect()
    assert found.rows() == [(i, str(path)) for i, path in zip("acb", files, strict=True)]
