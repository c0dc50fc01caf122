"""Other models as judges: pooled, pinned, and never two in memory."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks import models, tables
from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Metered
from tasks.engines.fake import Fake
from tasks.engines.transformers import Transformers
from tasks.errors import EngineError, ModelRefused
from tasks.judge import Judge, judge
from tasks.judge.jury import Juror, Jury
from tasks.judge.self_judge import SelfJudge

PROBLEM = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
ASKED = [{"id": "p", "problem": PROBLEM, "prompt": [{"role": "user", "content": PROBLEM}]}]
ANSWERS = [{"id": f"p{n}", "prompt_id": "p", "sample": n, "response": f"Answer: {n}", "answer": str(n)} for n in (7, 8)]


def says(*right):
    """An engine that finds these answers right."""

    def answer(messages, seed):
        return "Verdict: correct" if messages[-1][1].rstrip()[-1] in right else "Verdict: wrong"

    return Fake.scripted(answer)


def judged(panel, engine=None, **jurors):
    return judge_by(Jury(jury={name: Juror(engine=who) for name, who in jurors.items()}), panel, engine)


def judge_by(jury, panel=None, engine=None):
    given = {"parent_model": Path("m"), "engine": engine or Fake(down=True), "cache": Path("c"), "seed": 3}
    members = (panel or {}) | {"jury": jury}
    tabled = tables.frame(tables.prompts, ASKED), tables.frame(tables.responses, ANSWERS)
    rows = judge(Judge(panel=members, reward="jury"), *tabled, **given, domain=Arithmetic()).collect()
    return {r["response_id"]: r for r in rows.iter_rows(named=True) if r["judge"] == "jury"}


def test_scores_are_averaged_and_verdicts_voted_on():
    rows = judged({}, one=says("8"), two=says("8"), three=says("7"))
    assert (rows["p8"]["score"], rows["p8"]["verdict"]) == (pytest.approx(2 / 3), "pass")
    assert (rows["p7"]["score"], rows["p7"]["verdict"]) == (pytest.approx(1 / 3), "fail")

    rows = judged({}, one=says("8"), two=says("7"))
    assert [(rows[p]["score"], rows[p]["verdict"]) for p in ("p7", "p8")] == [(0.5, None)] * 2


def test_a_juror_that_cannot_be_read_does_not_count():
    rows = judged({}, one=says("8"), two=Fake(garbage_rate=1.0), three=Fake(error_rate=1.0))
    assert (rows["p8"]["score"], rows["p7"]["score"]) == (1.0, 0.0)


def test_no_two_models_are_open_together_and_all_requests_count():
    loaded, seen = [], []

    class Counting(Fake):
        @contextmanager
        def open(self, model, cache=None):
            loaded.append(model)
            seen.append(len(loaded))
            with super().open(model, cache) as policy:
                yield policy
            loaded.remove(model)

    meter = Metered(Counting())
    judged({"self_judge": SelfJudge()}, meter, one=Counting(), two=Counting())
    assert seen == [1, 1, 1] and not loaded
    assert meter.total("requests") == 6 and meter.requests == 2


def test_a_juror_that_never_answers_ends_the_stage_and_is_named(monkeypatch):
    monkeypatch.setattr("tasks.engines.MANY", 2)
    said = r"juror bad \(judge.panel.jury.jury.bad\): engine fake: none of 2 requests was answered"
    with pytest.raises(EngineError, match=said):
        judged({}, Metered(Fake(down=True)), good=says("8"), bad=Fake(error_rate=1.0))


def test_models_are_looked_at_before_the_first_juror_is_asked():
    asked = []
    first = Juror(engine=Fake.scripted(lambda messages, seed: asked.append(seed) or "Verdict: correct"))
    lost = Juror(engine=Fake(), model="data/round=gone/model")
    with pytest.raises(
        ModelRefused, match=r"juror second .*: data/round=gone/model: this model of a juror is not there"
    ):
        judge_by(Jury(jury={"first": first, "second": lost}))
    assert not asked


def test_a_model_is_pinned_by_its_digest(tiny_model, tmp_path):
    engine = {"strategy": "transformers"}
    with pytest.raises(ValidationError, match="write its folder under `model`"):
        Juror(engine=engine)
    with pytest.raises(ValidationError, match=f"write digest: {models.digest(tiny_model)}"):
        Juror(engine=engine, model=str(tiny_model))
    juror = Juror(engine=engine, model=str(tiny_model), digest=models.digest(tiny_model))
    assert juror.folder() == tiny_model and juror.engine == Transformers()
    with pytest.raises(ModelRefused, match="params.yaml pins 000000"):
        Juror(engine=engine, model=str(tiny_model), digest="0" * 64).folder()
    with pytest.raises(ModelRefused, match="there is no such model folder"):
        Juror(engine=engine, model=str(tmp_path / "gone"), digest="0" * 64).folder()


def test_a_model_of_the_project_may_be_named_before_it_is_made(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"engine": {"strategy": "transformers"}, "model": "data/round=teacher/model"}
    juror = Juror(**own)
    with pytest.raises(ModelRefused, match=r"round=teacher/model: .* not there; `flywheel run teacher` makes it"):
        juror.folder()
    shutil.copytree(tiny_model, own["model"])
    digest = models.digest(tiny_model)
    with pytest.raises(ModelRefused, match=f"pin this model of a juror in params.yaml: write digest: {digest}"):
        Juror(**own).folder()
    assert Juror(**own, digest=digest).folder() == Path(own["model"])
    with pytest.raises(ValidationError, match="once it is there: .*there is no such model folder"):
        Juror(**own | {"model": "../other/data/round=teacher/model"})


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("vllm", "must name its strategy, as in {strategy: fake}"),
        ({"strategy": "vlm"}, "did you mean 'vllm'"),
        ({"strategy": "fake", "eror_rate": 1}, "eror_rate: unknown key; did you mean 'error_rate'"),
        ({"strategy": "fake", "error_rate": 2}, "error_rate: Input should be less than or equal to 1"),
    ],
)
def test_an_engine_that_is_none_is_refused(engine, said):
    with pytest.raises(ValidationError, match=said.replace("{", r"\{").replace("?", r"\?")):
        Juror(engine=engine)


def test_real_models_judge_one_after_the_other(tiny_model, tmp_path):
    pin = {"model": str(tiny_model), "digest": models.digest(tiny_model)}
    jury = Jury(
        jury={n: {"engine": {"strategy": "transformers", "batch_size": s}, **pin} for n, s in (("a", 4), ("b", 8))}
    )
    given = {
        "parent_model": tiny_model,
        "engine": Fake(down=True),
        "cache": tmp_path,
        "seed": 3,
        "domain": Arithmetic(),
    }
    tabled = tables.frame(tables.prompts, ASKED), tables.frame(tables.responses, ANSWERS)
    rows = judge(Judge(panel={"jury": jury}, reward="jury"), *tabled, **given).collect()
    assert rows.height == 2 and (rows["score"].is_null() == rows["error"].is_not_null()).all()
