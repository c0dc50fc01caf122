"""What running stages would ask of their engines, before it is asked."""

import gzip

import projects
import pytest

from tasks.core import store
from tasks.core.plugin import load, names
from tasks.core.stage import stages
from tasks.project import graph
from tasks.project.estimate import estimate, show, volume
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
    assert volumes["generate@r2"] == (2 * requests, 2 * tokens, "as generate@r2 × 2")
    assert volumes["filter@r2"].requests == 0


def test_a_round_that_never_ran_is_estimated_from_its_nearest_ancestor(made):
    projects.rewrite(made, lambda c: c["rounds"].update(r3={"parent": "r2", "base": "r0", "seed": 3}))
    volumes = estimate(made, ["generate@r3", "evaluate@r3"])
    assert volumes["generate@r3"] == (*spent(made, "r2", "generate"), "as generate@r2")
    assert volumes["evaluate@r3"] == (*spent(made, "r2", "evaluate"), "as evaluate@r2")


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
