"""Files against manifests and dvc.lock, and rows walked back to seeds and weights."""

import json
import shutil
from pathlib import Path

import polars as pl
import projects
import pytest
from rich.console import Console
from ruamel.yaml import YAML

from tasks.core import store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.core.tables import TABLES
from tasks.project import graph
from tasks.views import provenance
from tasks.views.verify import read_lock, show, stored_rounds, verify


def found(root: Path, *rounds: str) -> list[tuple[str, str]]:
    """Kind and path of every finding."""
    lock = read_lock(root)
    return [(f.kind, f.path) for f in verify(root, stored_rounds(root, lock, rounds), lock).findings]


def printed(root: Path, **how: bool) -> tuple[int, str]:
    console = Console(width=1_000)
    with console.capture() as capture:
        code = show(root, console=console, **how)
    return code, capture.get()


def flip(path: Path) -> None:
    """Changes one byte and keeps the size; the file is no link into DVC's cache any more."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


# Files


def test_a_project_as_it_was_written(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(campaign)
    code, text = printed(campaign)
    files = [p for p in campaign.glob("data/round=*/**/*") if p.is_file() and ".staging" not in p.parts]
    count = len([p for p in files if p.name != ".gitignore"])
    assert code == 0
    assert text.startswith(f"{count} files of 3 bases and rounds, ")
    assert "GB/s), against manifests and dvc.lock: all as written" in text


def test_a_flipped_byte(made: Path) -> None:
    part = "data/round=r1/judgments/part-00000.parquet"
    flip(made / part)
    assert found(made) == [("changed", part), ("differs from dvc.lock", "data/round=r1/judgments")]
    assert found(made, "r2") == []
    code, text = printed(made)
    assert code == 1
    assert f"changed  {part}  its sha256 is " in text
    assert "1 changed, 1 differs from dvc.lock" in text


def test_a_part_that_was_cut_short(made: Path) -> None:
    part = made / "data/round=r1/evals/part-00000.parquet"
    data = part.read_bytes()
    part.unlink()
    part.write_bytes(data[:-1])
    [change, _] = verify(made, ["r1"], read_lock(made)).findings
    assert change.what == f"has {len(data) - 1:,} bytes, its manifest says {len(data):,}"


def test_a_removed_part_and_a_removed_round(made: Path) -> None:
    part = "data/round=r1/prompts/part-00000.parquet"
    (made / part).unlink()
    assert found(made) == [("missing", part), ("missing", "data/round=r1/prompts")]
    shutil.rmtree(made / "data/round=r2")
    gone = found(made, "r2")
    assert ("missing", "data/round=r2/manifests/judge.json") in gone
    assert {kind for kind, _ in gone} == {"missing"}


def test_a_foreign_file(made: Path) -> None:
    names = ("judgments/notes.txt", "model/optimizer.pt", "mine.csv", "metrics/later.json")
    for name in names:
        (made / "data/round=r1" / name).write_text("mine")
    extra = [path for kind, path in found(made) if kind == "extra"]
    assert sorted(extra) == sorted(f"data/round=r1/{name}" for name in names)
    folders = [path for kind, path in found(made) if kind == "differs from dvc.lock"]
    assert sorted(folders) == ["data/round=r1/judgments", "data/round=r1/model"]


def test_a_metric_that_was_edited(made: Path) -> None:
    flip(made / "data/round=r1/metrics/judge.json")
    assert found(made) == [("differs from dvc.lock", "data/round=r1/metrics/judge.json")]


def test_a_manifest_that_the_lock_does_not_know(made: Path) -> None:
    """A stage that ran beside DVC: its parts are its manifest's, and neither is the lock's."""
    rewrite(made, "r2", "filter", "filtered", store.read(made, "r2", "filtered").head(1))
    assert found(made) == [
        ("differs from dvc.lock", "data/round=r2/filtered"),
        ("differs from dvc.lock", "data/round=r2/manifests/filter.json"),
        ("differs from dvc.lock", "data/round=r2/metrics/filter.json"),
    ]
    lock = YAML(typ="safe").load(made / "dvc.lock")
    del lock["stages"]["filter@r2"]
    YAML().dump(lock, made / "dvc.lock")
    unknown = {path for kind, path in found(made) if kind == "unknown to dvc.lock"}
    assert unknown == {"data/round=r2/filtered", "data/round=r2/manifests/filter.json"}


def test_an_older_result_that_was_committed_for_one_that_was_never_made(made: Path) -> None:
    """Of another plan, and of other inputs: to DVC both are up to date."""
    projects.set_values(made, "r2", ["pair.best_worst.min_reward=0.9"])
    assert graph.stale(made, "r2")[0] == "pair@r2"
    with projects.dvc(made) as repo:
        repo.commit("pair@r2", force=True)
    assert graph.stale(made, "r2") == []
    assert found(made) == [("made otherwise", "data/round=r2/manifests/pair.json")]
    _, text = printed(made)
    assert "another plan; `dvc repro --force --single-item pair@r2` makes it again" in text
    manifest = made / "data/round=r2/manifests/judge.json"
    flip(manifest)
    assert ("unreadable", "data/round=r2/manifests/judge.json") in found(made), "and no error ends the list"
    with projects.dvc(made) as repo:
        repo.checkout(str(manifest), force=True)
        repo.reproduce("pair@r2", force=True, single_item=True)
    assert found(made) == []
    with projects.dvc(made) as repo:
        repo.commit("collect@r2", force=True)
    assert found(made) == [("made otherwise", "data/round=r2/manifests/collect.json")]
    assert "it read other pairs of r2 than dvc.lock says" in printed(made)[1]


def test_without_a_lock_manifests_alone_are_compared(made: Path) -> None:
    (made / "dvc.lock").unlink()
    code, text = printed(made)
    assert code == 0
    assert "against manifests (there is no dvc.lock): all as written" in text
    flip(made / "data/round=r1/manifests/judge.json")
    (made / "data/round=r1/manifests/judge.json").write_text("{")
    kinds = [kind for kind, _ in found(made)]
    assert kinds[0] == "unreadable"
    assert ("extra", "data/round=r1/judgments/part-00000.parquet") in found(made)


def test_what_is_not_there_is_told(tmp_path: Path, campaign: Path, made: Path) -> None:
    with pytest.raises(FlywheelError, match="no stage has stored anything yet"):
        show(tmp_path / "none")
    with pytest.raises(UnknownName, match="no stored round or base 'r22'; did you mean 'r2'"):
        show(campaign, ["r22"])
    (made / "dvc.lock").write_text("stages: [}")
    with pytest.raises(StoreError, match="not a lock of DVC"):
        show(made)


def test_the_weights_that_a_pointer_stands_for(made: Path) -> None:
    flip(made / "data/base/model.safetensors")
    assert found(made) == [("changed", f"data/round={name}/model/pointer.json") for name in ("r0", "r1", "r2")]


# Provenance


def rewrite(root: Path, round: str, stage: str, table: str, rows: pl.DataFrame) -> None:
    """Commits other rows as a stage's table; its other tables stay."""
    manifest = store.manifests(root, round)[stage]
    others = {name: store.read(root, round, name) for name in manifest.outputs if name in TABLES and name != table}
    with store.writing(root, round, stage) as draft:
        for name, frame in (others | {table: rows}).items():
            draft.table(TABLES[name], frame)
        draft.file(f"metrics/{stage}.json", json.dumps(manifest.metrics))
        draft.commit(manifest.model_copy(update={"outputs": draft.outputs}))


def shares(root: Path) -> dict[tuple[str, str], tuple[int, int]]:
    return {(s.round, s.table): (s.rows, s.reached) for s in provenance.walk(root)}


def test_every_row_leads_back_to_seeds_and_weights(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With critiques, refinements, pairs of both kinds, and rows that are replayed once and twice."""
    monkeypatch.chdir(mixed)
    walked = shares(mixed)
    assert set(walked) == {(r, t) for r in ("r1", "r2", "r3") for t in ("training", "preferences")}
    assert all(rows == reached > 0 for rows, reached in walked.values())
    sources = set(store.read(mixed, "r3", "training")["source"]) | set(store.read(mixed, "r3", "preferences")["source"])
    assert sources == {"responses", "refinements", "critiques", "replay"}
    code, text = printed(mixed, with_provenance=True)
    assert code == 0
    assert text.count("100 %") == 6


def test_a_planted_broken_parent_is_found_in_all_that_descends_from_it(copied: Path) -> None:
    """A response of r1 is lost: its training row, the replays of that in r2 and r3, and its pairs lead nowhere."""
    replayed = set(store.read(copied, "r3", "training").filter(source="replay")["id"])
    rows = store.read(copied, "r1", "training").filter(pl.col("source") == "responses", pl.col("id").is_in(replayed))
    row = rows.sort("id").row(0, named=True)
    responses = store.read(copied, "r1", "responses")
    rewrite(copied, "r1", "generate", "responses", responses.filter(pl.col("id") != row["response_id"]))
    preferences = store.read(copied, "r1", "preferences")
    pairs = preferences.filter(
        (pl.col("chosen_id") == row["response_id"]) | (pl.col("rejected_id") == row["response_id"])
    )
    critiques = set(store.read(copied, "r1", "critiques").filter(response_id=row["response_id"])["id"])
    refinements = set(store.read(copied, "r1", "refinements").filter(response_id=row["response_id"])["id"])
    lost = {row["response_id"]} | critiques | refinements
    walked = {(s.round, s.table): s for s in provenance.walk(copied)}
    for name in ("r1", "r2", "r3"):
        of_round = store.read(copied, name, "training")
        ids = set(rows_lost(copied, lost))
        share = walked[name, "training"]
        assert share.rows - share.reached == len(of_round.filter(pl.col("id").is_in(ids)))
        assert share.strays
        assert all("response_id is" in why or "names no row" in why for _, why in share.strays)
    assert walked["r1", "preferences"].rows - walked["r1", "preferences"].reached == len(pairs)
    assert any(f"training {row['id']} of r1 names no row: response_id is {row['response_id']}" in why
               for share in walked.values() for _, why in share.strays)  # fmt: skip
    code, text = printed(copied, with_provenance=True)
    assert code == 1
    assert f"training r1 {sorted(set(rows_lost(copied, lost)))[0]}" in text


def rows_lost(root: Path, lost: set[str]) -> list[str]:
    rows = store.read(root, "r1", "training")
    return rows.filter(pl.col("response_id").is_in(lost))["id"].to_list()


def test_an_example_that_no_table_and_no_domain_has_is_found(copied: Path) -> None:
    prompts = store.read(copied, "r3", "prompts")
    used = set(store.read(copied, "r3", "training").filter(pl.col("source") != "replay")["prompt_id"])
    row = prompts.filter(pl.col("id").is_in(used)).sort("id").row(0, named=True)
    forged = pl.when(pl.col("id") == row["id"]).then(pl.lit(["feed000000000000"])).otherwise("parents")
    rewrite(copied, "r3", "prompts", "prompts", prompts.with_columns(parents=forged))
    walked = {(s.round, s.table): s for s in provenance.walk(copied)}
    training = walked["r3", "training"]
    assert training.reached < training.rows
    assert f"prompts {row['id']} of r3 names no row: parents is feed000000000000" in {why for _, why in training.strays}
    assert walked["r2", "training"].reached == walked["r2", "training"].rows


def test_weights_that_nobody_has_are_found(copied: Path) -> None:
    responses = store.read(copied, "r2", "responses")
    rewrite(copied, "r2", "generate", "responses", responses.with_columns(model=pl.lit("0" * 64)))
    walked = {(s.round, s.table): s for s in provenance.walk(copied, ["r2"])}
    assert set(walked) == {("r2", "training"), ("r2", "preferences")}
    assert walked["r2", "preferences"].reached == 0
    replayed = store.read(copied, "r2", "training").filter(source="replay")
    assert walked["r2", "training"].reached == len(replayed)
    assert "was written by weights that no base, round or roster has: 000" in walked["r2", "training"].strays[0][1]
