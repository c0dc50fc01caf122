"""The store: whatever happens while a version is written, readers see the old one or the new one, whole."""

import errno
import multiprocessing
import random
import time

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core import _parts, store
from tasks.core.errors import Busy, CheckFailed, StoreError
from tasks.core.frames import frame
from tasks.core.plan import Plan
from tasks.core.tables import Table, filtered, measures, prompts

NUMBERS = Table("numbers", "", pa.schema([("id", pa.string()), ("value", pa.int64())]))


def manifest(draft, stage="filter", **more):
    blank = {
        "inputs": {},
        "plan": Plan(round="r1", stage=stage),
        "versions": {},
        "metrics": {},
        "tokens": {},
        "seconds": {},
    }
    return store.Manifest(round="r1", stage=stage, outputs=draft.outputs, started="", finished="", **{**blank, **more})


def write(root, frame, table=filtered, stage="filter", files=None):
    with store.writing(root, "r1", stage) as draft:
        draft.table(table, frame)
        if files is not None:
            folder = draft.folder("model")
            for name, text in files.items():
                (folder / name).write_text(text)
            draft.describe_folder("model")
        draft.commit(manifest(draft, stage))


def rows(*ids, kept=True):
    return pl.DataFrame(
        [
            {
                "id": i,
                "prompt_id": "p",
                "kept": kept,
                "rank": 1 if kept else None,
                "reason": None if kept else "score",
                "margin": 0.0,
                "score": 1.0,
            }
            for i in ids
        ],
        schema=frame(filtered).collect_schema(),
    )


def numbers(count, offset=0):
    return pl.DataFrame({"id": [str(i) for i in range(count)], "value": list(range(offset, offset + count))})


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, rows("a", "b"))
    frame, digest = store.scan(tmp_path, "r1", "filtered")
    assert frame.collect()["id"].to_list() == ["a", "b"]
    write(tmp_path, rows("a", "b"))
    assert store.scan(tmp_path, "r1", "filtered")[1] == digest


def test_an_empty_table_keeps_its_columns(tmp_path):
    write(tmp_path, rows())
    assert store.scan(tmp_path, "r1", "filtered")[0].collect().columns == filtered.schema.names


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 17))
def test_row_groups_do_not_depend_on_how_batches_arrive(sizes, group):
    schema, total = NUMBERS.schema, sum(sizes)
    whole = numbers(total).to_arrow().cast(schema)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    batches = [whole.slice(s, n) for s, n in zip(starts, sizes, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_parts, "ROWS_PER_GROUP", group)
        found = list(_parts._groups(batches, schema))
    assert pa.concat_tables(found).equals(whole)
    assert [g.num_rows for g in found[:-1]] == [group] * (len(found) - 1)


def test_parts_are_cut_by_rows_and_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "ROWS_PER_GROUP", 10)
    monkeypatch.setattr(_parts, "GROUPS_PER_PART", 2)
    write(tmp_path, numbers(45), NUMBERS)
    _, output = store.find(tmp_path, "r1", "numbers")
    assert [p.rows for p in output.parts] == [20, 20, 5]
    assert store.scan(tmp_path, "r1", "numbers")[0].collect().equals(numbers(45))


def test_a_broken_check_names_the_rows_and_leaves_the_old_version(tmp_path):
    write(tmp_path, rows("a"))
    bad = rows("x", "y").with_columns(reason=pl.lit("odd"))
    with pytest.raises(CheckFailed, match=r"filtered: rows (x, y|y, x) break the check 'kept or a reason'"):
        write(tmp_path, bad)
    with pytest.raises(CheckFailed, match='unique "id"'):
        write(tmp_path, rows("z", "z"))
    assert store.scan(tmp_path, "r1", "filtered")[0].collect()["id"].to_list() == ["a"]


@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_a_damaged_part_is_named(tmp_path, damage):
    write(tmp_path, rows("a", "b"))
    part = tmp_path / "data/round=r1/filtered/part-00000.parquet"
    data = bytearray(part.read_bytes())
    if damage == "delete":
        part.unlink()
    else:
        data[len(data) // 2] ^= 1
        part.write_bytes(data[:-7] if damage == "cut" else data)
    with pytest.raises(StoreError, match=r"part-00000\.parquet .*dvc checkout"):
        store.scan(tmp_path, "r1", "filtered")


def test_a_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(StoreError, match="flywheel run r1"):
        store.scan(tmp_path, "r1", "filtered")


def test_a_full_disk_leaves_the_old_version(tmp_path, monkeypatch):
    write(tmp_path, rows("a"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_parts.pq.ParquetWriter, "write_table", full)
    with pytest.raises(StoreError, match="the disk is full .*Nothing already made is lost"):
        write(tmp_path, rows("b"))
    assert store.scan(tmp_path, "r1", "filtered")[0].collect()["id"].to_list() == ["a"]


def test_when_a_part_cannot_be_written_no_more_rows_are_made_and_whoever_makes_them_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "ROWS_PER_GROUP", 2)
    encode, encoded, made, over = _parts.pq.ParquetWriter.write_table, [], [], []

    def fails(writer, group):
        encoded.append(group)
        if len(encoded) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        encode(writer, group)

    def frames():
        try:
            for n in range(1000):
                made.append(n)
                yield rows(f"{n:04}a", f"{n:04}b")
        finally:
            over.append(True)

    monkeypatch.setattr(_parts.pq.ParquetWriter, "write_table", fails)
    with pytest.raises(StoreError, match="the disk is full"):
        write(tmp_path, frames())
    assert over and len(made) < 1000


def test_a_failing_run_leaves_the_next_run_s_draft_alone(tmp_path, monkeypatch):
    class Lock(store.FileLock):
        """The next run starts in the very moment in which the lock is free."""

        def _release(self):
            super()._release()
            (tmp_path / "data/round=r1/.staging/filter/new/theirs").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(store, "FileLock", Lock)
    with pytest.raises(ZeroDivisionError), store.writing(tmp_path, "r1", "filter"):
        raise ZeroDivisionError
    assert (tmp_path / "data/round=r1/.staging/filter/new/theirs").is_dir()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_metric_that_is_no_number_leaves_the_old_version(tmp_path, value):
    write(tmp_path, rows("a"))
    with pytest.raises(StoreError, match=r"filter@r1: the metric sft_loss is (inf|nan)"):
        with store.writing(tmp_path, "r1", "filter") as draft:
            draft.table(filtered, rows("b"))
            draft.commit(manifest(draft, metrics={"sft_loss": value}))
    assert store.manifests(tmp_path, "r1")["filter"].metrics == {}
    assert store.scan(tmp_path, "r1", "filtered")[0].collect()["id"].to_list() == ["a"]


def test_a_check_that_is_null_is_broken(tmp_path):
    with pytest.raises(CheckFailed, match=r"filter@r1, table filtered: rows x break the check 'kept or a reason'"):
        write(tmp_path, rows("x").with_columns(kept=pl.lit(None, pl.Boolean)))
    with pytest.raises(CheckFailed, match="break the check 'id is not null'"):
        write(tmp_path, rows("x").with_columns(id=pl.lit(None, pl.String)))
    assert not store.has(tmp_path, "r1", "filtered")


def test_a_measure_over_all_levels_has_no_level(tmp_path):
    row = {"name": "greedy", "level": None, "value": 0.5, "low": None, "high": None, "count": 1}
    write(tmp_path, frame(measures, [row]), measures)
    assert store.has(tmp_path, "r1", "measures")


def test_a_project_s_path_is_no_pattern(tmp_path):
    root = tmp_path / "mine [old]*"
    write(root, rows("a"))
    assert store.scan(root, "r1", "filtered")[0].collect()["id"].to_list() == ["a"]


def test_a_second_writer_is_told_that_it_is_busy(tmp_path):
    with store.writing(tmp_path, "r1", "filter"):
        with pytest.raises(Busy, match="filter@r1"), store.writing(tmp_path, "r1", "filter"):
            pass


def test_a_commit_that_was_cut_short_is_finished_by_the_next_reader(tmp_path, monkeypatch):
    write(tmp_path, rows("a"), files={"weights": "old"})
    with monkeypatch.context() as patch:
        patch.setattr(store, "roll_forward", lambda place, staging: None)
        write(tmp_path, rows("b"), files={"weights": "new"})
    assert "new" not in (tmp_path / "data/round=r1/model/weights").read_text()
    assert store.scan(tmp_path, "r1", "filtered")[0].collect()["id"].to_list() == ["b"]
    assert store.folder(tmp_path, "r1", "model")[0].joinpath("weights").read_text() == "new"
    assert not list((tmp_path / "data/round=r1/.staging/filter").glob("*/"))


def rewrite(root, version, ready):
    ready.send(True)
    write(root, numbers(50_000, offset=version), NUMBERS, files={"weights": str(version)})


def test_twenty_kills_leave_the_old_or_the_new_version(tmp_path):
    """SIGKILL at random instants of a write of a table, a folder and a manifest, in forked children."""
    fork = multiprocessing.get_context("forkserver")  # a plain fork of a process that has used polars hangs
    fork.set_forkserver_preload(["tasks.core.store"])

    def begin(version):
        started, ready = fork.Pipe(duplex=False)
        child = fork.Process(target=rewrite, args=(tmp_path, version, ready))
        child.start()
        started.recv()
        return child, time.perf_counter()

    child, start = begin(0)
    child.join()
    about, rng, seen = time.perf_counter() - start, random.Random(7), set()
    for version in range(1, 21):
        child, _ = begin(version)
        time.sleep(rng.uniform(0, 1.3) * about)
        child.kill()
        child.join()
        frame = store.scan(tmp_path, "r1", "numbers")[0].collect()
        weights = int(store.folder(tmp_path, "r1", "model")[0].joinpath("weights").read_text())
        assert frame.height == frame["id"].n_unique() == 50_000
        assert frame["value"][0] == weights <= version
        seen.add(weights)
        about *= 0.85 if weights == version else 1.25  # the machine's speed varies: keep to where the commit is
    assert len(seen) > 2, "the kills must fall on both sides of the commit"
    write(tmp_path, numbers(3), NUMBERS)
    assert store.scan(tmp_path, "r1", "numbers")[0].collect().height == 3


def test_nulls_beside_one_text_are_counted_as_they_are(tmp_path):
    """As in a round whose rejected prompts all have the same reason."""
    rows = [{"id": str(n), "problem": "p", "prompt": [{"role": "user", "content": "p"}], "error": None if n < 6 else "malformed"}
            for n in range(10)]  # fmt: skip
    with store.writing(tmp_path, "r1", "prompts") as draft:
        metrics = draft.table(prompts, frame(prompts, rows))
        draft.commit(manifest(draft, "prompts"))
    assert metrics == {"prompts": 6, "prompts_rejected/malformed": 4}
