"""What running stages would ask of their engines, before it is asked."""

import gzip

import projects
import pytest

from tasks.core import store
from tasks.core.plugin import load, names
from tasks.core.stage import stages
from tasks.project import graph
from tasks.project.estimate import Estimate, duration, estimate, show, total, volume
from tasks.project.params import load_params, stages_of
from tasks.project.pipeline import address

pytestmark = pytest.mark.xdist_group("campaign")


def spent(root, name: str, stage: str) -> tuple[int, int]:
    tokens = store.manifests(root, name)[stage].tokens
    return tokens["requests"], tokens["prompt_tokens"] + tokens["completion_tokens"]


def test_estimates_start_from_the_earlier_run(made):
    projects.set_values(made, "r2", ["generate.sample.samples=6"])
    volumes = estimate(made, ["generate@r2", "filter@r2"])
    requests, tokens = spent(made, "r2", "generate")
    doubled = volumes["generate@r2"]
    assert (doubled.requests, doubled.tokens, doubled.source) == (2 * requests, 2 * tokens, "as generate@r2 × 2")
    assert volumes["filter@r2"].requests == 0
    assert volumes["filter@r2"].source == "as filter@r2"


def test_a_round_that_never_ran_is_estimated_from_its_nearest_ancestor(made):
    projects.rewrite(made, lambda c: c["rounds"].update(r3={"parent": "r2", "base": "r0", "seed": 3}))
    volumes = estimate(made, ["generate@r3", "evaluate@r3"])
    for stage in ("generate", "evaluate"):
        v = volumes[f"{stage}@r3"]
        assert (v.requests, v.tokens, v.source) == (*spent(made, "r2", stage), f"as {stage}@r2")


def change(root, stage: str, name: str = "r2", **values) -> None:
    """Rewrites the manifest of a stage."""
    path = root / f"data/round={name}/manifests/{stage}.json"
    path.write_text(store.read_manifest(path).model_copy(update=values).text)


def price(root, **prices) -> None:
    projects.rewrite(root, lambda c: c.update(prices=prices))


def test_time_is_that_of_the_earlier_run_and_only_the_work_is_scaled(made):
    change(made, "generate", seconds={"start": 5.0, "model": 10.0, "run": 1.0, "write": 1.0})
    change(made, "filter", seconds={"start": 1.0, "run": 2.0})
    projects.set_values(made, "r2", ["generate.sample.samples=6", "prompts.seeds.count=6"])
    then = store.manifests(made, "r2")["prompts"].plan.members["seeds"]["count"]
    volumes = estimate(made, ["generate@r2", "filter@r2"])
    assert volumes["generate@r2"].seconds == pytest.approx(5 + 12 * 2 * 6 / then)
    assert volumes["filter@r2"].seconds == pytest.approx(1 + 2 * 6 / then), "it asks no model: by prompts"
    assert total(volumes.values()).seconds == pytest.approx(sum(v.seconds for v in volumes.values()))


def test_money_is_that_of_tokens_and_gpu_hours_as_far_as_they_have_a_price(made):
    tokens = spent(made, "r2", "generate")[1]
    assert estimate(made, ["generate@r2"])["generate@r2"].money is None
    price(made, tokens={"fake": 1000})
    assert estimate(made, ["generate@r2"])["generate@r2"].money == pytest.approx(tokens / 1000)
    price(made, gpu_hour=3)
    assert estimate(made, ["generate@r2"])["generate@r2"].money == 0
    change(made, "generate", gpu_seconds=7200.0)
    projects.set_values(made, "r2", ["generate.sample.samples=6"])
    volumes = estimate(made, ["generate@r2", "filter@r2"])
    assert (volumes["generate@r2"].gpu_hours, volumes["generate@r2"].money) == (4.0, 12.0)
    assert (total(volumes.values()).gpu_hours, total(volumes.values()).money) == (4.0, 12.0)


def test_a_model_of_the_roster_has_its_own_price(made):
    used = {"requests": 1, "prompt_tokens": 2_000_000, "completion_tokens": 1_000_000}
    change(made, "judge", usage={"parent": used, "large": used})
    server = {"engine": {"strategy": "openai", "base_url": "http://localhost:1/v1", "model": "big"}}
    projects.rewrite(made, lambda c: c.update(models={"large": server}))
    price(made, tokens={"openai": {"prompt": 1, "completion": 10}})
    assert estimate(made, ["judge@r2"])["judge@r2"].money == 12
    price(made, tokens={"openai": 1, "large": {"completion": 7}})
    assert estimate(made, ["judge@r2"])["judge@r2"].money == 7


def test_a_stage_that_never_ran_takes_the_seconds_per_token_of_those_that_did(made):
    for name in ("r1", "r2"):
        (made / f"data/round={name}/manifests/critique.json").unlink()
    price(made, tokens={"fake": {"completion": 1_000_000}})
    read = [store.manifests(made, n).values() for n in ("r0", "r1", "r2")]
    ran = [m for ms in read for m in ms if m.tokens["completion_tokens"]]
    rate = sum(m.seconds["model"] for m in ran) / sum(m.tokens["completion_tokens"] for m in ran)
    guess = estimate(made, ["critique@r2"])["critique@r2"]
    assert guess.source == "its params"
    assert guess.tokens > 0
    assert guess.seconds == pytest.approx(guess.tokens * rate)
    assert guess.money == pytest.approx(guess.tokens), "as if all of them were generated"


def test_where_nothing_ran_the_time_is_not_known_and_not_zero(project):
    volumes = estimate(project(git=False), ["evaluate-base@r0", "generate@r1", "filter@r1"])
    assert [v.seconds for v in volumes.values()] == [None, None, None]
    assert total(volumes.values()).seconds is None
    assert "1 is not known" in total([volumes["filter@r1"], Estimate(seconds=3.0)]).source


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0 s"), (59, "59 s"), (90, "2 min"), (3600 * 2.5, "2.5 h")]
)
def test_durations_are_in_the_unit_that_a_person_would_say(seconds, text):
    assert duration(seconds) == text


def test_what_the_small_project_asks_is_what_its_params_say(made):
    params = load_params(made)
    for name, stage in (("r1", "generate"), ("r1", "evaluate"), ("r0", "evaluate")):
        assert volume(stages()[stage], params.block(name).values).requests == spent(made, name, stage)[0]


VALUES = {
    "prompts": {"pool": {"count": 100}},
    "generate": {"sample": {"samples": 4, "max_tokens": 50}},
    "critique": {"auto_math": {"limit": 10, "refinements": 2, "max_tokens": 7}},
    "filter": {"threshold": {}},
    "judge": {"reward": "self_judge", "self_consistency": {}, "self_judge": {"max_tokens": 20}},
    "evaluate": {
        "answers": {"splits": ["heldout", "validation"], "max_tokens": 1},
        "critiques": {"count": 10, "problems": 20, "max_tokens": 1},
    },
}


def asked(stage: str, **values) -> tuple[int, int]:
    return volume(stages()[stage], VALUES | values)[:2]


def test_estimates_of_what_never_ran_come_from_the_settings():
    assert asked("prompts") == (100, 100 * 128)
    assert asked("generate") == (400, 400 * 50)
    assert asked("critique") == (35, 35 * 7), "correct answers are criticised too, and not refined"
    assert asked("evaluate")[0] == 2 * (350 + 350 * 8) + 10 + 3 * 20
    assert asked("judge") == (400, 400 * 20)
    assert asked("filter") == (0, 0)


def test_members_are_added_up():
    hot = {
        "generate": {
            "sample": {"samples": 4, "max_tokens": 50},
            "hot": {"strategy": "sample", "samples": 2, "max_tokens": 10},
        }
    }
    assert asked("generate", **hot) == (600, 400 * 50 + 200 * 10)
    assert asked("judge", **hot)[0] == 600, "every answer of both is judged"


def test_only_the_likeliest_answers_are_judged_where_a_judge_says_so():
    judge = {"reward": "self_judge", "self_judge": {"max_tokens": 20, "likeliest": 2}}
    assert asked("judge", judge=judge) == (200, 200 * 20)
    jury = {"strategy": "jury", "models": ["a", "b", "c"], "samples": 2, "max_tokens": 10}
    assert asked("judge", judge=judge | {"panel": jury}) == (200 + 400 * 3 * 2, 200 * 20 + 400 * 3 * 2 * 10)


def test_a_file_of_prompts_has_no_more_of_them_than_lines(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"problem": "a"}\n\n{"problem": "b"}\n{"problem": "c"}\n')
    with gzip.open(tmp_path / "more.jsonl.gz", "wb") as file:
        file.write(b'{"problem": "d"}\n' * 5)
    for name, count, prompts in (("mine.jsonl", 1000, 3), ("more.jsonl.gz", 2, 2), ("gone.jsonl", 7, 7)):
        values = VALUES | {"prompts": {"seeds": {"path": name, "count": count}}}
        assert volume(stages()["generate"], values, tmp_path).requests == prompts * 4


@pytest.mark.parametrize(
    ("stage", "members", "requests"),
    [
        ("generate", {"hint": {"samples": 4}}, 100 * 8),
        ("generate", {"teacher": {"samples": 4, "model": "base", "answers": 2}}, 100 * 6),
        ("generate", {"guided": {"samples": 4, "teachers": ["base", "anchor"]}}, 100 * 8),
        ("generate", {"feedback": {"samples": 4, "teacher": "base"}}, 100 * 12),
        ("judge", {"win_rate": {}}, 100 * 12),
        ("judge", {"win_rate": {"opponents": 1}}, 100 * 8),
        ("judge", {"self_agreement": {}}, 100),
        ("judge", {"principles": {"samples": 3, "group": 3}}, 100 * 6),
        ("filter", {"representation": {"count": 10}}, 400),
        ("evaluate", {"roles": {"problems": 10, "roles": ["solve", "judge"]}}, 20),
        ("evaluate", {"roles": {"problems": 10}}, 10 * len(load("domains", "arithmetic").roles)),
        ("evaluate", {"lm_eval": {"tasks": ["a", "b"], "limit": 30}}, 60),
        ("evaluate", {"sharpening": {"problems": 10, "samples": 3}}, 60),
    ],
)
def test_strategies_that_ask_more_than_once(stage, members, requests):
    assert asked(stage, **{stage: members}, domain={"strategy": "arithmetic"})[0] == requests


@pytest.mark.parametrize("name", stages())
def test_every_strategy_has_an_estimate(name):
    for strategy in names(name):
        kind = load(name, strategy)
        requests, tokens, source = volume(stages()[name], VALUES | {name: {strategy: kind.example}})
        assert (requests > 0) == bool(kind.needs), strategy
        assert tokens >= 0
        assert source == ("its params" if kind.needs else "")


def test_every_stage_of_the_project_itself_has_an_estimate():
    params = load_params(projects.HERE)
    volumes = {address(s, b): volume(s, b.values) for b in params.blocks.values() for s in stages_of(b)}
    assert volumes["generate@r1"].requests == 700 * 8
    assert volumes["judge@r1"].requests == 700 * 2
    assert volumes["filter@r1"].requests == 0


def test_dry_run_shows_stages_and_their_sum(made, capsys):
    projects.set_values(made, "r2", ["generate.sample.samples=6"])
    show(made, "r2", graph.stale(made, "r2"))
    shown = capsys.readouterr().out
    assert "9 stages to run" in shown
    assert "generate@r2" in shown
    assert "prompts@r2" not in shown
    [total] = [line for line in shown.splitlines() if " all " in line]
    assert f"{sum(v.requests for v in estimate(made, graph.stale(made, 'r2')).values()):,}" in total
    assert "money" not in shown and "GPU hours" not in shown
    price(made, tokens={"fake": 1000}, currency="EUR")
    change(made, "generate", gpu_seconds=7200.0)
    show(made, "r2", graph.stale(made, "r2"))
    shown = capsys.readouterr().out
    assert "money, EUR" in shown and "GPU hours" in shown
