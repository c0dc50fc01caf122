from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tasks.core import store
from tasks.core.errors import FlywheelError, StoreError
from tasks.core.plan import Plan
from tasks.core.tables import TABLES
from tasks.views.catalog import connect
from tasks.views.export import export
from tasks.views.trace import Trace

PARAMS = """
bases:
  r0: {seed: 1, domain: {strategy: arithmetic}, engine: {strategy: fake}, base: {strategy: local}}
rounds:
  r1: {parent: r0, base: r0, seed: 2, recipe: toy}
"""


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def training(n: int, **more: Any) -> dict[str, Any]:
    chats = {"prompt": turn("user", f"{n} + {n}?"), "completion": turn("assistant", str(2 * n))}
    ids = {"id": f"t{n}", "prompt_id": f"p{n}", "response_id": f"a{n}", "model": "abc"}
    return ids | chats | {"source": "responses", "weight": 1.0} | more


def pair(n: int) -> dict[str, Any]:
    chats = {"chosen": turn("assistant", str(2 * n)), "rejected": turn("assistant", str(2 * n + 1))}
    scores = {"chosen_score": 1.0, "rejected_score": 0.0, "source": "responses", "weight": 1.0, "smoothing": 0.0}
    return {"id": f"q{n}", "prompt_id": f"p{n}", "prompt": turn("user", f"{n} + {n}?"), **chats, **scores}


def preference(n: int, **more: Any) -> dict[str, Any]:
    scores = ("chosen_score", "rejected_score")
    return {k: v for k, v in pair(n).items() if k not in scores} | {"weight": 1.0, "smoothing": 0.0} | more


def project(root: Path, rows: int, pairs: int) -> Path:
    """A round that was trained on no preferences, though it has pairs."""
    write(root, "pair", pairs=[pair(n) for n in range(pairs)])
    write(root, "collect", training=[training(n) for n in range(rows)], preferences=[])
    return root


def write(root: Path, stage: str, **tables: list[dict[str, Any]]) -> None:
    (root / "params.yaml").write_text(PARAMS)
    strategies = {"pair": "best_worst", "collect": "answers"}
    with store.writing(root, "r1", stage) as draft:
        for name, rows in tables.items():
            draft.table(TABLES[name], frame(name, rows))
        facts = {"inputs": {}, "versions": {}, "metrics": {}, "tokens": {}, "seconds": {}}
        times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:09+00:00"}
        plan = Plan(round="r1", stage=stage, members={strategies[stage]: {"strategy": strategies[stage]}})
        draft.commit(store.Manifest(round="r1", stage=stage, plan=plan, outputs=draft.outputs, **facts, **times))


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
    assert sft.column_names == ["prompt", "completion", "id"]
    assert preference.column_names == ["prompt", "chosen", "rejected", "id"]
    assert sft[2] == {"prompt": turn("user", "2 + 2?"), "completion": turn("assistant", "4"), "id": "t2"}
    assert preference[1]["rejected"] == turn("assistant", "3")
    assert all(is_conversational(row) for rows in (sft, preference) for row in rows)
    assert len(unpair_preference_dataset(preference)) == 6


def test_an_exported_row_is_traced(mixed: Path, tmp_path: Path) -> None:
    export(mixed, "r2", tmp_path / "exported")
    con = connect(mixed)
    for config, table in (("sft", "training"), ("preference", "preferences")):
        rows = pq.read_table(tmp_path / "exported" / config / "train-00000.parquet").to_pylist()
        found = Trace(con, rows[0]["id"], "r2")
        assert (found.subject.table, found.made_from[0].row["prompt"]) == (table, rows[0]["prompt"])
    assert "`flywheel trace ID --round r2`" in (tmp_path / "exported" / "README.md").read_text()


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
    for line in (
        "| `sft` | 5 |",
        "| `preference` | 3 |",
        "| parent | `r0` |",
        "| recipe | `toy` |",
        "| pair | best_worst | 3 |",
        "`abc`",
    ):
        assert line in body


def test_what_the_round_was_trained_on_is_exported_and_nothing_else(tmp_path: Path) -> None:
    root, to = project(tmp_path, 0, 3), tmp_path / "exported"
    rows = [training(0), training(1, error="long: 900 tokens")]
    chosen = [preference(5), preference(6), preference(7, error="long: 900 tokens")]
    write(root, "collect", training=rows, preferences=chosen)
    assert export(root, "r1", to).endswith("1 SFT rows, 2 preference pairs of r1")
    table = pq.read_table(to / "preference" / "train-00000.parquet")
    assert [row["chosen"][0]["content"] for row in table.to_pylist()] == ["10", "12"]
    assert pq.read_table(to / "sft" / "train-00000.parquet").to_pylist()[0]["completion"] == turn("assistant", "0")


def test_completions_to_be_avoided_are_no_sft_rows_and_weights_stay(tmp_path: Path) -> None:
    root, to = project(tmp_path, 0, 3), tmp_path / "exported"
    rows = [training(0, label=True), training(1, label=False, weight=5.0), training(2, label=None, weight=0.5)]
    write(root, "collect", training=rows, preferences=[preference(0), preference(1, weight=2.0)])
    assert export(root, "r1", to).endswith("2 SFT rows, 2 preference pairs of r1")
    sft, pairs = (pq.read_table(to / c / "train-00000.parquet").to_pylist() for c in ("sft", "preference"))
    assert [(r["completion"][0]["content"], r["weight"]) for r in sft] == [("0", 1.0), ("4", 0.5)]
    assert [r["weight"] for r in pairs] == [1.0, 2.0]
    assert "| `sft` | 2 | `prompt`, `completion`, `id`, `weight` |" in (to / "README.md").read_text()
    write(root, "collect", training=rows[:2], preferences=[])
    export(root, "r1", to)
    assert pq.read_schema(to / "sft" / "train-00000.parquet").names == [
        "prompt",
        "completion",
        "id",
    ]  # 5.0 is of no row left
    write(root, "collect", training=rows[1:2], preferences=[])
    assert export(root, "r1", to).endswith("0 SFT rows, 3 preference pairs of r1")


def test_equal_tables_give_equal_bytes_and_replace_an_earlier_export(tmp_path: Path) -> None:
    root, to, again = project(tmp_path, 5, 3), tmp_path / "exported", tmp_path / "again"
    export(root, "r1", to)
    (to / "sft" / "train-00001.parquet").write_bytes(b"of an older export")
    for place in (to, again):
        export(root, "r1", place)
    files = [sorted((p.relative_to(d), p.read_bytes()) for p in d.rglob("*") if p.is_file()) for d in (to, again)]
    assert files[0] == files[1]
    assert len(files[0]) == 3
    assert pq.read_schema(to / "sft" / "train-00000.parquet").names == ["prompt", "completion", "id"]


def test_nothing_but_an_export_is_replaced(tmp_path: Path) -> None:
    root, to = project(tmp_path, 1, 1), tmp_path / "mine"
    beside = tmp_path / "exported.new"
    beside.mkdir()
    (beside / "thesis.tex").write_text("mine")
    for _ in range(2):
        export(root, "r1", tmp_path / "exported")
    assert (beside / "thesis.tex").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [".flywheel", "data", "exported", "exported.new"]
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
    with pytest.raises(FlywheelError, match="r1 has neither"):
        export(root, "r1", tmp_path / "to")
    with pytest.raises(StoreError, match="r0 has no 'training' yet"):
        export(root, "r0", tmp_path / "to")
    project(tmp_path, 1, 1)
    part = root / "data" / "round=r1" / "pairs" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="sha256"):
        export(root, "r1", tmp_path / "to")
    assert not (tmp_path / "to").exists()
