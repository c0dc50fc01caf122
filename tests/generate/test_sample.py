from pathlib import Path

import polars as pl
import pytest

from tasks import tables
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.generate import generate
from tasks.generate.sample import Sample
from tasks.stage import seed_of


def asked(*names: str, error: str | None = None) -> list[dict]:
    return [{"id": n, "problem": n, "prompt": [{"role": "user", "content": n}], "error": error} for n in names]


def run(rows: list[dict], engine: Fake | None = None, seed: int = 7, **fields) -> pl.DataFrame:
    given = {"parent_model": Path("m"), "engine": engine or Fake(), "domain": Arithmetic(), "cache": Path("c")}
    return answered(Sample(**fields), rows, seed=seed, **given)


def answered(params: Sample, rows: list[dict], **given) -> pl.DataFrame:
    frames = generate(params, tables.frame(tables.prompts, rows), **given).frames["responses"]
    return pl.concat([tables.frame(tables.responses), *frames], how="vertical_relaxed").collect()


def test_a_row_a_sample_with_its_own_seed():
    rows = run(asked("b", "a"), samples=3)

    assert rows.select("prompt_id", "sample").rows() == [(p, k) for p in "ab" for k in range(3)]
    assert rows["seed"].to_list() == [seed_of(7, p, k) for p in "ab" for k in range(3)]
    assert rows["id"].n_unique() == 6
    assert rows["answer"].null_count() == 0
    assert rows["mean_logprob"].to_list() == pytest.approx((rows["logprob"] / rows["tokens"]).to_list())
    assert not rows["hinted"].any()


def test_more_prompts_or_samples_leave_the_others_as_they_are():
    few, many = run(asked("a"), samples=2), run(asked("c", "a", "b"), samples=4)

    assert many.join(few, on="id", how="semi").equals(few)
    assert not set(few["id"]) & set(run(asked("a"), samples=2, seed=8)["id"])


def test_many_prompts_are_answered_piece_by_piece_and_the_rows_are_the_same(monkeypatch):
    names = [f"{n}" for n in range(25)]
    whole = run(asked(*names), samples=2)
    monkeypatch.setattr("tasks.generate.PIECE", 7)

    assert run(asked(*names), samples=2).equals(whole)
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

    assert run(asked("a", "b"), Backwards()).equals(run(asked("a", "b"), Fake()))


def test_what_failed_is_a_row_without_an_answer():
    rows = run(asked(*map(str, range(20))), Fake(error_rate=0.5))

    failed = rows.filter(pl.col("error").is_not_null())
    assert 0 < len(failed) < len(rows) == rows["id"].n_unique() == 160
    assert failed["answer"].null_count() == len(failed)
    assert set(failed["finish_reason"]) == {"error"}


def test_a_text_without_an_answer_is_no_error():
    rows = run(asked("a"), Fake(garbage_rate=1.0), samples=2)

    assert rows["answer"].to_list() == [None, None]
    assert rows["error"].to_list() == [None, None]


def test_unusable_prompts_are_not_answered_and_no_model_is_loaded_for_nothing():
    assert set(run([*asked("a"), *asked("b", error="duplicate: of a")])["prompt_id"]) == {"a"}

    empty = run(asked("b", error="duplicate: of a"), Fake(down=True))
    assert empty.is_empty()
    assert empty.columns == tables.responses.schema.names


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

    greedy = run(asked("a"), Spy(), temperature=0, samples=1, max_tokens=5)

    assert seen == [(Path("m"), Path("c")), (("user", "a"),)]
    assert len(greedy) == 1


def test_a_real_model_gives_statistics_and_the_same_bytes_again(tiny_model, tmp_path):
    from tasks.engines.transformers import Transformers

    def made(cache: Path) -> pl.DataFrame:
        given = {
            "parent_model": tiny_model,
            "engine": Transformers(),
            "domain": Arithmetic(),
            "seed": 1,
            "cache": cache,
        }
        return answered(Sample(samples=3, max_tokens=12), asked("Tom", "Ann"), **given)

    rows = made(tmp_path / "one")

    assert rows.equals(made(tmp_path / "one"))
    assert rows.equals(made(tmp_path / "two"))
    assert rows.select("logprob", "mean_logprob", "entropy", "self_certainty").null_count().row(0) == (0, 0, 0, 0)
    assert (rows["logprob"] <= 0).all()
    assert rows["response"].n_unique() > 1
    assert rows["tokens"].max() <= 12
