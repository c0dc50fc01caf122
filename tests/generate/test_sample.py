from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from tasks.core import frames, roster, tables
from tasks.core.errors import EngineError, FlywheelError
from tasks.core.ids import member_seed, seed_of
from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Completion, Requests, Sampling, completion_columns
from tasks.engines.fake import Fake
from tasks.generate import generate
from tasks.generate.sample import Sample


def problems(*names: str, error: str | None = None) -> list[dict]:
    return [{"id": n, "problem": n, "prompt": [{"role": "user", "content": n}], "error": error} for n in names]


def run(rows: list[dict], engine: Fake | None = None, seed: int = 7, **fields) -> pl.DataFrame:
    return answered({"sample": Sample(**fields)}, rows, roster.one(engine or Fake(), Path("m"), cache=Path("c")), seed)


def answered(members: dict[str, Sample], rows: list[dict], models: roster.Models, seed: int = 7) -> pl.DataFrame:
    with closing(models):
        pieces = generate(members, frames.frame(tables.prompts, rows), models, Arithmetic(), seed).frames["responses"]
        return pl.concat([frames.frame(tables.responses), *pieces], how="vertical_relaxed").collect()


def test_a_row_a_sample_with_its_own_seed():
    rows = run(problems("b", "a"), samples=3)

    assert rows.select("prompt_id", "sample").rows() == [(p, k) for p in "ab" for k in range(3)]
    assert rows["seed"].to_list() == [seed_of(7, p, k) for p in "ab" for k in range(3)]
    assert rows["id"].n_unique() == 6
    assert set(rows["member"]) == {"sample"}
    assert rows["answer"].null_count() == 0
    assert rows["mean_logprob"].to_list() == pytest.approx((rows["logprob"] / rows["tokens"]).to_list())
    assert not rows["hinted"].any()


def test_more_prompts_or_samples_leave_the_others_as_they_are():
    few, many = run(problems("a"), samples=2), run(problems("c", "a", "b"), samples=4)

    assert many.join(few, on="id", how="semi").equals(few)
    assert not set(few["id"]) & set(run(problems("a"), samples=2, seed=8)["id"])


def test_many_prompts_are_answered_piece_by_piece_and_the_rows_are_the_same(monkeypatch):
    names = [f"{n}" for n in range(25)]
    whole = run(problems(*names), samples=2)
    monkeypatch.setattr("tasks.generate.PIECE", 7)

    assert run(problems(*names), samples=2).equals(whole)
    assert whole["prompt_id"].to_list() == sorted(whole["prompt_id"])


def test_the_order_in_which_completions_come_back_does_not_matter():
    class Backwards(Fake):
        def open(self, model, cache=None):
            from contextlib import contextmanager

            @contextmanager
            def opened():
                with super(Backwards, self).open(model, cache) as policy:
                    forward = policy.sample
                    policy.sample = lambda requests: reversed(list(forward(requests)))
                    yield policy

            return opened()

    assert run(problems("a", "b"), Backwards()).equals(run(problems("a", "b"), Fake()))


class OneByOne(Fake):
    """Has no columns of its own."""

    @contextmanager
    def open(self, model, cache=None):
        with super().open(model, cache) as policy:
            yield SimpleNamespace(digest=policy.digest, sample=policy.sample)


TEXTS = ("", "a", " two\x1cwords\u00a0 here ", "é\n\nü" * 50, "1 2  3", "Answer: 4")


@pytest.mark.parametrize("how", [{"samples": 3}, {"samples": 1, "temperature": 0.0}])
def test_an_engine_that_answers_by_columns_gives_the_rows_and_counts_of_one_that_does_not(how):
    rows = [{**row, "prompt": [{"role": "system", "content": "x y"}, *row["prompt"]]} for row in problems(*TEXTS)]
    sides = [roster.one(engine(reply="echo"), Path("m")) for engine in (Fake, OneByOne)]
    with roster.one(Fake(reply="echo"), Path("m")).open() as policy:
        chats = frames.frame(tables.prompts, rows).collect()["prompt"]
        assert policy.sample_columns(Requests(chats, Sampling(), pl.Series(range(len(rows))))) is not None

    ours, theirs = (answered({"sample": Sample(**how)}, rows, models) for models in sides)

    assert ours.equals(theirs) and len(ours) == how["samples"] * len(TEXTS)
    counts = [replace(side.meters["parent"], seconds=0.0, load_seconds=0.0) for side in sides]
    assert counts[0] == counts[1] and counts[1].requests == len(theirs)


def test_a_budget_is_kept_also_by_an_engine_that_answers_by_columns():
    sources = {"parent": roster.Source(Fake(reply="echo"), lambda: Path("m"))}
    models = roster.Models(sources, budget=10)

    rows = answered({"sample": Sample(samples=1)}, problems(*(f"{n} and {n}" for n in range(400))), models)

    assert rows["error"].null_count() == models.total("requests") == roster.BATCH
    assert models.total("unsent") == 400 - roster.BATCH


def test_columns_of_failures_are_counted_and_too_few_are_an_error():
    completions = [Completion("4", 2, 3), Completion("", 0, 3, "error", error="busy")]
    completions += [Completion("", 0, 3, "error", error="too long", permanent=True)]
    policy = SimpleNamespace(
        digest="d", sample_columns=lambda _: completion_columns([*enumerate(completions)]).drop("n")
    )

    class Recorded(Fake):
        def open(self, model, cache=None):
            return nullcontext(policy)

    models = roster.one(Recorded(max_error_share=1), Path("m"))

    rows = answered({"sample": Sample(samples=1)}, problems("a", "b", "c"), models)

    meter = models.meters["parent"]
    assert (meter.requests, meter.failed, meter.permanent, meter.last_error) == (3, 1, 1, "too long")
    assert (meter.prompt_tokens, meter.completion_tokens) == (9, 2)
    assert rows.select("response", "error").rows() == [("4", None), ("", "busy"), ("", "too long")]
    with pytest.raises(EngineError, match="3 of 4"):
        answered({"sample": Sample(samples=2)}, problems("a", "b"), roster.one(Recorded(), Path("m")))


def test_what_failed_is_a_row_without_an_answer():
    rows = run(problems(*map(str, range(20))), Fake(error_rate=0.5))

    failed = rows.filter(pl.col("error").is_not_null())
    assert 0 < len(failed) < len(rows) == rows["id"].n_unique() == 160
    assert failed["answer"].null_count() == len(failed)
    assert set(failed["finish_reason"]) == {"error"}


def test_a_text_without_an_answer_is_no_error():
    rows = run(problems("a"), Fake(garbage_rate=1.0), samples=2)

    assert rows["answer"].to_list() == [None, None]
    assert rows["error"].to_list() == [None, None]


def test_unusable_prompts_are_not_answered():
    assert set(run([*problems("a"), *problems("b", error="duplicate: of a")])["prompt_id"]) == {"a"}


def test_without_prompts_no_model_is_loaded():
    empty = run([], Fake(down=True))

    assert empty.is_empty()
    assert empty.columns == tables.responses.schema.names


def test_a_round_whose_prompts_were_all_rejected_fails_with_the_reasons():
    rows = [*problems("a", "b", error="duplicate: of c"), *problems("d", error="malformed: why")]

    with pytest.raises(FlywheelError, match="2 duplicate, 1 malformed"):
        run(rows, Fake(down=True))


def test_two_temperatures_in_one_round(monkeypatch):
    members = {"sample": Sample(samples=2), "cold": Sample(samples=3, temperature=0.5)}
    opened = []

    class Counted(Fake):
        def open(self, model, cache=None):
            opened.append(model)
            return super().open(model, cache)

    whole = answered(members, problems("a", "b", "c"), roster.one(Counted()))
    monkeypatch.setattr("tasks.generate.PIECE", 2)
    pieces = answered(members, problems("a", "b", "c"), roster.one(Counted()))

    assert len(whole) == whole["id"].n_unique() == 3 * 5
    cold = whole.filter(pl.col("member") == "cold", pl.col("prompt_id") == "a")
    assert cold["seed"].to_list() == [seed_of(member_seed(7, "cold", "sample"), "a", k) for k in range(3)]
    assert pieces.sort("id").equals(whole.sort("id"))
    assert pieces["prompt_id"].to_list() == [*"aabb", *"aaabbb", "c", "c", *"ccc"]
    assert len(opened) == 2  # once a round


def test_a_second_member_leaves_the_first_as_it_is():
    alone = answered({"sample": Sample(samples=2)}, problems("a", "b"), roster.one(Fake()))
    both = answered({"hot": Sample(samples=2), "sample": Sample(samples=2)}, problems("a", "b"), roster.one(Fake()))

    assert both.filter(pl.col("member") == "sample").equals(alone)
    assert both["id"].n_unique() == 8


def test_another_model_can_answer():
    sources = {name: roster.Source(Fake(), lambda name=name: Path(name)) for name in ("parent", "anchor")}
    members = {"sample": Sample(samples=1), "theirs": Sample(samples=1, model="anchor")}

    rows = answered(members, problems("a"), roster.Models(sources))

    with Fake().open(Path("anchor")) as anchor:
        assert dict(rows.select("member", "model").rows())["theirs"] == anchor.digest
    assert rows["model"].n_unique() == 2
    assert [m.opened_models() for m in members.values()] == [{"parent"}, {"anchor"}]


def test_the_params_reach_the_engine():
    seen = []

    class Spy(Fake):
        def open(self, model, cache=None):
            manager = super().open(model, cache)
            seen.append((model, cache))
            return manager

        def answer(self, messages, seed):
            seen.append(messages)
            return "Answer: 1"

    greedy = run(problems("a"), Spy(), temperature=0, samples=1, max_tokens=5)

    assert seen == [(Path("m"), Path("c")), (("user", "a"),)]
    assert len(greedy) == 1


def test_a_real_model_gives_statistics_and_the_same_bytes_again(tiny_model, tmp_path):
    from tasks.engines.transformers import Transformers

    def made(cache: Path) -> pl.DataFrame:
        models = roster.one(Transformers(), tiny_model, cache=cache)
        return answered({"sample": Sample(samples=3, max_tokens=12)}, problems("Tom", "Ann"), models, 1)

    rows = made(tmp_path / "one")

    assert rows.equals(made(tmp_path / "one"))
    assert rows.equals(made(tmp_path / "two"))
    assert rows.select("logprob", "mean_logprob", "entropy", "self_certainty").null_count().row(0) == (0, 0, 0, 0)
    assert (rows["logprob"] <= 0).all()
    assert rows["response"].n_unique() > 1
    assert rows["tokens"].max() <= 12
