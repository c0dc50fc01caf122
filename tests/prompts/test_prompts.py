from pathlib import Path

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import frames, roster, tables
from tasks.core.ids import content_id, member_seed
from tasks.core.stage import Result
from tasks.domains import Domain, Item
from tasks.engines.fake import Fake
from tasks.prompts import PromptsCase, Screening, prompts


class Free(Domain):
    near_duplicates = "structure"

    def items(self, split, count, seed):
        return [Item("an evaluation item")]


class Scripted(Screening):
    """Writes given texts; an empty one is malformed."""

    texts: list[str]

    def __call__(self, case: PromptsCase) -> pl.LazyFrame:
        intake = self.intake(case)
        for text in self.texts:
            intake.add(case.domain.parse(text), text)
        return intake.table()


def run(members: dict[str, Screening], seed: int = 1) -> Result:
    none = frames.frame(tables.prompts), frames.frame(tables.responses)
    return prompts(members, *none, roster.one(Fake(), Path("m")), Free(), seed)


def table(members: dict[str, Screening]) -> pl.DataFrame:
    return run(members).frames["prompts"].collect()


TEXTS = st.lists(st.sampled_from(["", "a", "b", "c", "an evaluation item"]), max_size=6)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_whatever_several_members_write_ids_are_unique_and_a_text_is_used_once(texts):
    rows = table({f"m{n}": Scripted(texts=own) for n, own in enumerate(texts)})

    assert len(rows) == rows["id"].n_unique() == sum(map(len, texts))
    assert rows["id"].is_sorted()
    assert rows.columns == tables.prompts.schema.names
    usable = rows.filter(pl.col("error").is_null())
    assert sorted(usable["problem"]) == sorted({t for own in texts for t in own} - {"", "an evaluation item"})
    for n, own in enumerate(texts):
        assert (rows["member"] == f"m{n}").sum() == len(own)


@given(TEXTS, TEXTS)
def test_a_member_more_leaves_the_rows_before_it_as_they_are(first, second):
    alone = table({"one": Scripted(texts=first)})
    both = table({"one": Scripted(texts=first), "two": Scripted(texts=second)})

    assert both.filter(pl.col("member") == "one").equals(alone)


def test_an_id_that_an_earlier_member_has_is_a_duplicate_with_an_id_of_its_own():
    rows = table({"one": Scripted(texts=["a", ""]), "two": Scripted(texts=["a", "", "b"])})

    a, empty = content_id("a", 0), content_id("", 0)
    second = {row["id"]: row["error"] for row in rows.filter(pl.col("member") == "two").to_dicts()}
    assert {k: v and v.partition(":")[0] for k, v in second.items()} == {
        content_id(a, "two"): "duplicate",
        content_id(empty, "two"): "malformed",
        content_id("b", 0): None,
    }


def test_a_strategy_that_screens_nothing_cannot_use_a_text_twice():
    class Careless(Screening):
        def __call__(self, case: PromptsCase) -> pl.LazyFrame:
            chat = [{"role": "user", "content": "a"}]
            return frames.frame(tables.prompts, [{"id": content_id("a", 0), "problem": "a", "prompt": chat}])

    rows = table({"one": Scripted(texts=["a"]), "two": Careless()})

    errors = dict(rows.select("member", "error").rows())
    assert errors == {"one": None, "two": f"duplicate: of {content_id('a', 0)}"}


def test_what_an_earlier_member_rejected_a_later_one_may_use():
    """`a` of the first member is rejected as contaminated; the second one's is usable, and its children name its new id."""

    class Family(Screening):
        def __call__(self, case: PromptsCase) -> pl.LazyFrame:
            rows = [{"id": content_id("a", 0), "problem": "a", "parents": []}]
            rows += [{"id": "child", "problem": "b", "parents": [content_id("a", 0), "seed"]}]
            return frames.frame(tables.prompts, rows)

    class Rejecting(Screening):
        def __call__(self, case: PromptsCase) -> pl.LazyFrame:
            row = {"id": content_id("a", 0), "problem": "a", "error": "contaminated: it is in or near heldout"}
            return frames.frame(tables.prompts, [row])

    rows = table({"one": Rejecting(), "two": Family(), "three": Family()})
    own = content_id(content_id("a", 0), "two")
    assert rows["id"].is_unique().all()
    two = {row["id"]: (row["error"], row["parents"]) for row in rows.filter(member="two").to_dicts()}
    assert two == {own: (None, []), "child": (None, [own, "seed"])}
    assert set(rows.filter(member="three")["error"]) == {f"duplicate: of {own}", "duplicate: of child"}


def test_a_member_knows_what_those_before_it_accepted_and_draws_with_its_own_seed():
    cases = []

    class Spy(Screening):
        def __call__(self, case: PromptsCase) -> pl.LazyFrame:
            cases.append(case)
            return frames.frame(tables.prompts)

    table({"one": Scripted(texts=["a", "a", "", "b"]), "spy": Spy(), Spy.strategy_name(): Spy()})

    assert [sorted(p.text for p in case.known) for case in cases] == [["a", "b"], ["a", "b"]]
    assert [case.seed for case in cases] == [member_seed(1, "spy", Spy.strategy_name()), 1]


def test_an_ill_posed_problem_is_an_item_of_the_exam_and_no_prompt():
    class Tricky(Free):
        def ill_posed(self, count, seed):
            assert seed == 0 and count >= 100  # as many as the probe asks for by default
            return ["some minus some"]

    none = frames.frame(tables.prompts), frames.frame(tables.responses)
    member = {"one": Scripted(texts=["some minus some", "a"])}
    rows = prompts(member, *none, roster.one(Fake(), Path("m")), Tricky(), 1).frames["prompts"].collect()
    errors = dict(rows.select("problem", "error").rows())
    assert errors == {"some minus some": "contaminated: it is in or near ill_posed", "a": None}
