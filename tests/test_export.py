from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tasks import store
from tasks.errors import FlywheelError, StoreError
from tasks.export import export
from tasks.tables import TABLES

PARAMS = """
bases:
  r0: {seed: 1, domain: {strategy: arithmetic}, engine: {strategy: fake}, base: {strategy: local}}
rounds:
  r1: {parent: r0, base: r0, seed: 2, domain: {strategy: arithmetic}, engine: {strategy: fake}}
"""


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def training(n: int) -> dict[str, Any]:
    said = {"prompt": turn("user", f"{n} + {n}?"), "completion": turn("assistant", str(2 * n))}
    return {"id": f"t{n}", "prompt_id": f"p{n}", "response_id": f"a{n}", "model": "abc", "source": "responses", **said}


def pair(n: int) -> dict[str, Any]:
    said = {"chosen": turn("assistant", str(2 * n)), "rejected": turn("assistant", str(2 * n + 1))}
    scores = {"chosen_score": 1.0, "rejected_score": 0.0, "source": "responses"}
    return {"id": f"q{n}", "prompt_id": f"p{n}", "prompt": turn("user", f"{n} + {n}?"), **said, **scores}


def project(root: Path, rows: int, pairs: int) -> Path:
    (root / "params.yaml").write_text(PARAMS)
    tables = {"training": [training(n) for n in range(rows)], "pairs": [pair(n) for n in range(pairs)]}
    for stage, name in (("pair", "pairs"), ("train", "training")):
        with store.writing(root, "r1", stage) as draft:
            draft.table(TABLES[name], frame(name, tables[name]))
            facts = {"inputs": {}, "code": {}, "versions": {}, "metrics": {}, "tokens": {}, "seconds": {}}
            times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:09+00:00"}
            params = {stage: {"strategy": "best_worst" if stage == "pair" else "sft"}}
            draft.commit(
                store.Manifest(round="r1", stage=stage, outputs=draft.outputs, seed=2, params=params, **facts, **times)
            )
    return root


def frame(name: str, rows: list[dict[str, Any]]) -> Any:
    return pl.from_arrow(pa.Table.from_pylist(rows, TABLES[name].schema))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache for `datasets` of the test's own, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def test_datasets_loads_it_and_trl_accepts_its_columns(tmp_path: Path, offline: Path) -> None:
    from datasets import load_dataset
    from trl.data_utils import is_conversational, unpair_preference_dataset

    root, to = project(tmp_path, 5, 3), tmp_path / "exported"
    assert export(root, "r1", to) == f"{to}: 5 SFT rows, 3 preference pairs of r1"
    sft = load_dataset(str(to), "sft", split="train", cache_dir=str(offline))
    preference = load_dataset(str(to), "preference", split="train", cache_dir=str(offline))
    assert sft.column_names == ["prompt", "completion"]
    assert preference.column_names == ["prompt", "chosen", "rejected"]
    assert sft[2] == {"prompt": turn("user", "2 + 2?"), "completion": turn("assistant", "4")}
    assert preference[1]["rejected"] == turn("assistant", "3")
    assert all(is_conversational(row) for rows in (sft, preference) for row in rows)
    assert len(unpair_preference_dataset(preference)) == 6


def test_a_config_without_rows_is_not_declared(tmp_path: Path, offline: Path) -> None:
    from datasets import get_dataset_config_names, load_dataset

    to = tmp_path / "exported"
    export(project(tmp_path, 2, 0), "r1", to)
    assert get_dataset_config_names(str(to), cache_dir=str(offline)) == ["sft"]
    assert len(load_dataset(str(to), "sft", split="train", cache_dir=str(offline))) == 2
    export(project(tmp_path, 2, 1), "r1", to)
    assert len(load_dataset(str(to), "preference", split="train", cache_dir=str(offline))) == 1


def test_the_card_says_what_it_is_and_how_it_was_made(tmp_path: Path) -> None:
    to = tmp_path / "exported"
    export(project(tmp_path, 5, 3), "r1", to)
    _, front, body = (to / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert [c["config_name"] for c in matter["configs"]] == ["sft", "preference"]
    assert "license" not in matter
    for told in ("| `sft` | 5 |", "| `preference` | 3 |", "| parent | `r0` |", "| pair | best_worst | 3 |", "`abc`"):
        assert told in body


def test_equal_tables_give_equal_bytes_and_replace_an_earlier_export(tmp_path: Path) -> None:
    root, to, again = project(tmp_path, 5, 3), tmp_path / "exported", tmp_path / "again"
    export(root, "r1", to)
    (to / "sft" / "train-00001.parquet").write_bytes(b"of an older export")
    for place in (to, again):
        export(root, "r1", place)
    files = [sorted((p.relative_to(d), p.read_bytes()) for p in d.rglob("*") if p.is_file()) for d in (to, again)]
    assert files[0] == files[1]
    assert len(files[0]) == 3
    assert pq.read_schema(to / "sft" / "train-00000.parquet").names == ["prompt", "completion"]


def test_nothing_but_an_export_is_replaced(tmp_path: Path) -> None:
    root, to = project(tmp_path, 1, 1), tmp_path / "mine"
    beside = tmp_path / "exported.new"
    beside.mkdir()
    (beside / "thesis.tex").write_text("mine")
    for _ in range(2):
        export(root, "r1", tmp_path / "exported")
    assert (beside / "thesis.tex").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["data", "exported", "exported.new"]
    to.mkdir()
    (to / "README.md").write_text("mine")
    with pytest.raises(FlywheelError, match="not empty"):
        export(root, "r1", to)
    (to / "thesis.tex").write_text("mine")
    with pytest.raises(FlywheelError, match=r"'thesis\.tex', which is no export"):
        export(root, "r1", to)
    with pytest.raises(FlywheelError, match="is a file"):
        export(root, "r1", to / "README.md")
    assert (to / "README.md").read_text() == "mine"


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    root = project(tmp_path, 0, 0)
    with pytest.raises(FlywheelError, match="r1 has neither training rows nor pairs"):
        export(root, "r1", tmp_path / "to")
    with pytest.raises(StoreError, match="r0 has no 'training' yet"):
        export(root, "r0", tmp_path / "to")
    project(tmp_path, 1, 1)
    part = root / "data" / "round=r1" / "pairs" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="sha256"):
        export(root, "r1", tmp_path / "to")
    assert not (tmp_path / "to").exists()
