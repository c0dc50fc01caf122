import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import frames, roster, tables
from tasks.core.errors import FlywheelError
from tasks.domains import Domain
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.prompts import prompts
from tasks.prompts.seeds import Seeds, read

EASY = "Tom has 12 pens.\nDay 1: 5 found\nHow many?"
EVALUATION = {"heldout": 20}


class Free(Domain):
    def items(self, split, count, seed):
        return []


def run(seeds: Seeds, domain: Domain) -> pl.DataFrame:
    none, models = (frames.frame(tables.prompts), frames.frame(tables.responses)), roster.one(Fake(down=True))
    return prompts({"seeds": seeds}, *none, models, domain, 1).frames["prompts"].collect()


def file(folder: Path, *lines: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_domains_own_problems_need_no_model():
    rows = run(Seeds(count=21, evaluation=EVALUATION), Arithmetic())

    assert set(rows["problem"]) == {i.problem for i in Arithmetic().items("seeds", 21, 0)}
    assert rows["error"].null_count() == len(rows)
    assert set(rows["source"]) == {"seed"}
    assert rows["reference"].null_count() == 0


def test_a_file_of_ones_own(tmp_path):
    path = file(
        tmp_path,
        {"problem": "One."},
        "",
        {"prompt": "Two?", "level": 4, "x": 1},
        {"instruction": "Three!", "reference": 3},
    )

    rows = {row["problem"]: row for row in run(Seeds(path=path), Free()).to_dicts()}

    assert sorted(rows) == ["One.", "Three!", "Two?"]
    assert rows["Two?"]["level"] == 4
    assert rows["Three!"]["reference"] == "3"
    assert rows["One."]["prompt"] == [{"role": "user", "content": "One."}]


def test_what_is_not_of_the_domain_or_came_before_is_a_row_with_the_reason(tmp_path):
    rows = run(
        Seeds(path=file(tmp_path, *({"problem": p} for p in (EASY, "Why?", EASY))), evaluation=EVALUATION), Arithmetic()
    )

    assert sorted((e or "fine").split(":")[0] for e in rows["error"]) == ["duplicate", "fine", "malformed"]
    assert rows.filter(pl.col("error").is_null())["level"].to_list() == [1]


def test_no_line_after_the_count_is_read(tmp_path):
    path = file(tmp_path, {"problem": "One."}, "broken")

    assert len(run(Seeds(path=path, count=1), Free())) == 1


def test_a_line_more_on_top_leaves_ids_as_they_are(tmp_path):
    before = run(Seeds(path=file(tmp_path, {"problem": "One."})), Free())
    after = run(Seeds(path=file(tmp_path, {"problem": "Another thing."}, {"problem": "One."})), Free())

    assert set(before["id"]) < set(after["id"])


def test_gzipped(tmp_path):
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"problem": "One."}\n'))

    assert run(Seeds(path=path), Free())["problem"].to_list() == ["One."]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"problem": "x"', "JSON"),
        ('["x"]', "object"),
        ('{"question": "x"}', "instruction"),
        ('{"problem": ["x"]}', "text"),
        ('{"problem": " "}', "text"),
        ('{"problem": "x", "level": "hard"}', "'hard'"),
        ('{"problem": "x", "level": true}', "True"),
        ('{"problem": "x", "reference": [1]}', r"\[1\]"),
    ],
)
def test_a_broken_line_is_named_with_the_fix(tmp_path, line, word):
    path = file(tmp_path, {"problem": "fine"}, line)

    with pytest.raises(FlywheelError, match=word) as caught:
        run(Seeds(path=path), Free())
    assert f"{path}:2" in str(caught.value)
    assert "; " in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FlywheelError, match=r"none\.jsonl"):
        run(Seeds(path=tmp_path / "none.jsonl"), Free())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
)


@given(st.dictionaries(st.sampled_from(["problem", "prompt", "instruction", "level", "reference"]), JSON))
def test_any_object_is_read_or_refused_in_words(line):
    try:
        item, text = read("f:1", line, Free())
    except FlywheelError as error:
        item, text = None, str(error).removeprefix("f:1: ")

    assert text
    assert item is None or item.problem == text.strip()
