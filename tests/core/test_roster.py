"""The models that a stage may open: when they are loaded, what is counted, whose errors are whose."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.core.errors import EngineError, FlywheelError, ModelRefused, ParamsError, UnknownName
from tasks.core.roster import MIN_REQUESTS, SERVED, Meter, Models, Source, each_once, one
from tasks.engines import Completion, Embedded, Request, Sampling, Scored
from tasks.engines.fake import Fake

EVENTS: list[str] = []


class Watched(Fake):
    """Says when a model is opened and closed."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator:
        events = EVENTS  # of the test that opens it: a model that another test left open may be closed at any time
        events.append(f"+{model}")
        with super().open(model, cache) as policy:
            try:
                yield policy
            finally:
                events.append(f"-{model}")


@pytest.fixture
def events(monkeypatch):
    monkeypatch.setitem(globals(), "EVENTS", seen := [])
    return seen


@pytest.fixture
def models(events) -> Models:
    """Models a, b and c, and the parent."""
    return Models({n: Source(Watched(), lambda n=n: Path(n)) for n in ("parent", "a", "b", "c")})


def ask(policy, count: int = 1, text: str = "2+2?") -> list:
    request = [Request((("user", text),), Sampling(), seed) for seed in range(count)]
    return [completion for _, completion in policy.sample(request)]


def test_nothing_is_loaded_that_is_not_asked_for(events):
    folders = []
    models = Models({n: Source(Watched(), lambda n=n: folders.append(n) or Path(n)) for n in ("parent", "anchor")})
    assert models.names == {"parent", "anchor"}
    assert models.engine("anchor").strategy_name()
    assert (events, folders, models.meters) == ([], [], {})
    with models.open() as policy:
        assert ask(policy)
    assert (events, folders) == (["+parent"], ["parent"])
    models.close()
    assert events == ["+parent", "-parent"]


def test_a_model_stays_open_until_another_one_is_asked_for(models, events):
    for name in ("a", "a", "b", "b", "a"):
        with models.open(name) as policy:
            ask(policy)
    assert events == ["+a", "-a", "+b", "-b", "+a"]
    assert models.meters["a"].requests == 3


def test_two_are_in_memory_only_while_a_strategy_holds_both(models, events):
    with models.open("a") as policy, models.open("b") as other:
        assert policy.digest != other.digest
        assert ask(policy) and ask(other)
    assert events == ["+a", "+b"]
    with models.open("a") as policy, models.open("a") as same:
        assert policy is same
    assert events == ["+a", "+b", "-b"]
    with models.open("c"):
        assert events[3:] == ["-a", "+c"]


def test_an_error_closes_all_that_is_open(models, events):
    with pytest.raises(ZeroDivisionError), models.open("a"), models.open("b"):
        raise ZeroDivisionError
    assert sorted(events) == ["+a", "+b", "-a", "-b"]
    with models.open("c"):
        pass
    with models.open("a") as policy:
        assert ask(policy)
    assert events[4:] == ["+c", "-c", "+a"]


def test_a_model_that_cannot_be_opened_is_not_open(events):
    models = Models({"a": Source(Watched(down=True), lambda: Path("a")), "b": Source(Watched(), lambda: Path("b"))})
    for _ in range(2):
        with pytest.raises(EngineError, match="down"), models.open("a"):
            pass
    with models.open("b") as policy:
        assert ask(policy)
    assert events == ["+a", "+a", "+b"]


def test_what_is_asked_is_counted_by_model(models):
    with models.open("a") as policy:
        answers = ask(policy, 3)
        list(policy.score([(("user", "x"),)], ["one two three"]))
        assert dict(policy.embed(["one two", "one"]))[1].vector
    with models.open("b") as policy:
        ask(policy, 2)
    a, b = models.meters["a"], models.meters["b"]
    assert (a.requests, b.requests, models.total("requests")) == (6, 2, 8)
    assert a.completion_tokens == sum(c.tokens for c in answers) > 0
    assert a.prompt_tokens == sum(c.prompt_tokens for c in answers) + 3 + 3, "given text is read as a prompt is"
    assert models.spent() == pytest.approx(a.load_seconds + a.seconds + b.load_seconds + b.seconds)


def test_seconds_are_the_engines_and_not_of_who_reads_the_answers():
    models = one(Fake(seconds=0.02))
    with models.open() as policy:
        import time

        for _ in policy.sample([Request((("user", "x"),), Sampling(), seed) for seed in range(5)]):
            time.sleep(0.05)
    assert 0.1 <= models.meters["parent"].seconds < 0.25


def test_names_that_nothing_answers_to(models):
    with pytest.raises(UnknownName, match="'parnt'.*did you mean 'parent'"), models.open("parnt"):
        pass
    with pytest.raises(UnknownName, match="anchor"):
        models.engine("anchor")


def refuse() -> Path:
    raise ModelRefused("x/config.json is missing")


@pytest.mark.parametrize(("name", "starts"), [("parent", "x/"), ("model", "x/"), ("teacher", "model teacher: x/")])
def test_an_error_says_whose_it_is(name, starts):
    models = Models({name: Source(Fake(), refuse)})
    with pytest.raises(ModelRefused, match="missing") as raised, models.open(name):
        pass
    assert str(raised.value).startswith(starts)


def test_an_error_keeps_its_kind_and_is_named_once():
    models = Models({n: Source(Fake(), lambda n=n: refuse() if n == "b" else Path(n)) for n in ("a", "b")})
    with pytest.raises(ModelRefused) as raised, models.open("a"), models.open("b"):
        pass
    assert str(raised.value) == "model b: x/config.json is missing"


class Failing:
    """A policy whose calls fail, at once or while it is read."""

    digest = "failing"

    def sample(self, requests):
        yield from ()
        raise EngineError("the server is down")

    def score(self, prompts, completions, closed=False):
        raise EngineError("cannot score")

    def embed(self, texts):
        raise EngineError("cannot embed")


def test_only_the_errors_of_a_models_own_calls_name_it():
    failing = SimpleNamespace(open=lambda *_: nullcontext(Failing()))
    models = Models(
        {"anchor": Source(Fake(), lambda: SERVED)} | {n: Source(failing, lambda: SERVED) for n in ("parent", "b")}
    )
    for name, prefix in (("parent", ""), ("b", "model b: ")):
        with pytest.raises(EngineError) as raised, models.open("anchor"), models.open(name) as policy:
            ask(policy)
        assert str(raised.value) == f"{prefix}the server is down"
        with pytest.raises(EngineError) as raised, models.open("anchor"), models.open(name) as policy:
            list(policy.score([(("user", "x"),)], ["y"]))
        assert str(raised.value) == f"{prefix}cannot score"
        with pytest.raises(EngineError) as raised, models.open("anchor"), models.open(name) as policy:
            list(policy.embed(["y"]))
        assert str(raised.value) == f"{prefix}cannot embed"
    with pytest.raises(ParamsError) as raised, models.open("anchor"):
        raise ParamsError("odd")
    assert str(raised.value) == "odd"
    with pytest.raises(ParamsError) as raised, models.open("anchor") as policy:
        for _ in policy.sample([Request((("user", "x"),), Sampling(), 1)]):
            raise ParamsError("odd")
    assert str(raised.value) == "odd"


def test_a_model_that_only_a_server_has_has_no_folder():
    models = Models({"a": Source(Fake(), lambda: SERVED), "b": Source(Fake(), lambda: Path("here"))})
    assert models.folder("b") == Path("here")
    with pytest.raises(FlywheelError, match="'a'"):
        models.folder("a")
    with models.open("a") as policy:
        assert ask(policy)


def test_the_same_model_under_several_names(events):
    models = one(Watched(), Path("here"), "parent", "base")
    assert models.names == {"parent", "base"}
    with models.open("parent") as policy, models.open("base") as base:
        assert policy.digest == base.digest
    assert one(Fake()).names == {"parent"}


@pytest.mark.parametrize(
    ("requests", "failed", "share", "fails"),
    [(100, 5, 0.05, False), (100, 6, 0.05, True), (20, 1, 0.0, True), (20, 0, 0.0, False), (20, 20, 1.0, False), (20, 10, 0.5, False),
     (MIN_REQUESTS, 1, 0.05, True), (MIN_REQUESTS - 1, MIN_REQUESTS - 2, 0.05, False), (5600, 5599, 0.05, True),
     (MIN_REQUESTS - 1, MIN_REQUESTS - 1, 0.05, True), (1, 1, 0.05, True), (1, 1, 1.0, False), (1, 0, 0.05, False), (0, 0, 0.05, False)],
)  # fmt: skip
def test_a_larger_share_of_errors_than_allowed_is_an_error(requests, failed, share, fails):
    meter = Meter()
    for n in range(requests):
        meter.count([Scored(error="time-out" if n < failed else None)])
    with ExitStack() as stack:
        if fails:
            stack.enter_context(pytest.raises(EngineError, match=f"model b: {failed} of {requests} .*time-out"))
        meter.check("b", share)


def test_errors_that_every_try_repeats_do_not_count():
    """90 of 100 prompts are too long: 1 other failure of the 10 left is above 5 %, none is not."""
    for failed, fails in ((0, False), (1, True)):
        meter = Meter()
        for n in range(100):
            error = "too long" if n < 90 else "time-out" if n < 90 + failed else None
            meter.count([Scored(error=error, permanent=n < 90)])
        assert (meter.requests, meter.permanent, meter.failed) == (100, 90, failed)
        with pytest.raises(EngineError, match="1 of 10 ") if fails else nullcontext():
            meter.check("b", 0.05)


@pytest.mark.parametrize(("requests", "share", "fails"), [(8, 0.05, True), (8, 1.0, False), (7, 0.05, False)])
def test_where_no_request_can_succeed_no_other_try_is_asked_for(requests, share, fails):
    meter = Meter()
    for _ in range(requests):
        meter.count([Scored(error="too long", permanent=True)])
    with pytest.raises(FlywheelError, match="model b: none of 8 .*too long") if fails else nullcontext() as raised:
        meter.check("b", share)
    assert not fails or raised.value.exit_code == 1


def test_the_policy_says_which_errors_are_permanent():
    long, down = Completion("", error="too long", permanent=True), Completion("", error="down")
    scores = Scored(error="too long", permanent=True), Scored(error="down")
    vectors = Embedded(error="empty", permanent=True), Embedded(error="down")
    policy = SimpleNamespace(
        sample=lambda _: enumerate([long, down]), score=lambda *_: enumerate(scores), embed=lambda _: enumerate(vectors)
    )
    models = Models({"parent": Source(SimpleNamespace(open=lambda *_: nullcontext(policy)), lambda: SERVED)})
    with models.open() as metered:
        ask(metered, 2)
        list(metered.score([(("user", "x"),)] * 2, ["a", "b"]))
        list(metered.embed(["", "b"]))
    assert (models.meters["parent"].permanent, models.meters["parent"].failed) == (3, 3)


def test_each_model_may_fail_as_often_as_its_own_engine_says():
    engines = {"a": Fake(error_rate=1.0, max_error_share=1.0), "b": Fake(), "c": Fake(error_rate=1.0)}
    models = Models({n: Source(e, lambda: SERVED) for n, e in engines.items()})
    for name in ("a", "b"):
        with models.open(name) as policy:
            ask(policy, 20)
    models.check()
    assert (models.meters["a"].failed, models.meters["b"].failed) == (20, 0)
    with models.open("c") as policy:
        ask(policy, 20)
    with pytest.raises(EngineError, match=r"model c: 20 of 20 .*max_error_share \(0\.05\)"):
        models.check()


@pytest.mark.parametrize(
    ("answers", "words"),
    [([0, 1, 1], "request 1 twice"), ([0, 5], "request 5 of only 3"), ([-1], "request -1"), ([0, 2], "1 of 3 .* 1;"), ([], "3 of 3")],
)  # fmt: skip
def test_every_request_has_exactly_one_answer(answers, words):
    with pytest.raises(EngineError, match=words):
        list(each_once([(n, "x") for n in answers], 3))


def test_answers_may_come_in_any_order():
    assert list(each_once([(2, "c"), (0, "a"), (1, "b")], 3)) == [[(2, "c"), (0, "a"), (1, "b")]]


@pytest.mark.parametrize("budget", [1, 2 * 128, 2 * 128 + 1, 10**6])
def test_a_budget_is_overrun_by_one_batch_at_most(budget):
    models = Models({n: Source(Fake(), lambda: SERVED) for n in ("parent", "base")}, budget=budget)
    completions = []
    for name in ("parent", "base"):
        with models.open(name) as policy:  # each answer has two or three tokens
            requests = [Request((("user", f"{name} {n}"),), Sampling(), n) for n in range(300)]
            answers = dict(policy.sample(requests))
            completions += [answers[n] for n in range(300)]
    sent = [c for c in completions if c.error is None]
    spent = sum(c.tokens for c in sent)
    assert spent == models.total("completion_tokens")
    assert spent - sum(c.tokens for c in sent[-128:]) < budget
    assert (len(sent) == 600) == (spent < budget)
    unsent = completions[len(sent) :]
    assert all(c.permanent and "token_budget" in c.error for c in unsent)
    assert models.total("unsent") == len(unsent) == 600 - models.total("requests")
    models.check()  # what was not sent is no failure of the engine


def test_without_a_budget_all_is_sent_at_once():
    calls = []
    models = one(Fake(seconds=0.0))
    with models.open() as policy:
        inner = policy.policy.sample
        policy.policy.sample = lambda requests: calls.append(len(requests)) or inner(requests)
        ask(policy, 300)
    assert calls == [300]
