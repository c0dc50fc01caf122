"""What stages cost, from manifests and prices; and whether a campaign's budget is reached."""

import json

import projects
import pytest
import synthetic

from tasks.core import store
from tasks.core.errors import ParamsError
from tasks.core.stage import stages
from tasks.project import budget, costs, plan
from tasks.project.costs import Costs, Prices

pytestmark = pytest.mark.xdist_group("campaign")

PRICES = {"gpu_hour": 2.0, "tokens": {"openai": {"prompt": 1, "completion": 2}, "large": 10}}


def manifest(model_tokens: dict[str, tuple[int, int]], **more) -> store.Manifest:
    """Of `judge@r1`, whose parent runs in `transformers`; `large` and `small` of the roster are at a server."""
    block = synthetic.block("r1", "r0")
    made = synthetic.plan(block, stages()["judge"])
    roster = {name: {"engine": {"strategy": "openai", "model": name}} for name in ("large", "small")}
    usage = {m: {"requests": 1, "prompt_tokens": p, "completion_tokens": c} for m, (p, c) in model_tokens.items()}
    whole = {k: sum(u[k] for u in usage.values()) for k in ("requests", "prompt_tokens", "completion_tokens")}
    values = {
        "round": "r1",
        "stage": "judge",
        "plan": made.model_copy(update={"engine": {"strategy": "transformers"}, "models": roster}),
        "outputs": {},
        "inputs": {},
        "versions": {},
        "metrics": {},
        "tokens": whole,
        "usage": usage,
        "seconds": {"start": 600.0, "run": 1200.0},
        "started": "2026-01-01T10:10:00+00:00",
        "finished": "2026-01-01T10:30:00+00:00",
    }
    return store.Manifest(**values | more)


MILLION = 1_000_000
THREE = {"parent": (MILLION, MILLION), "large": (MILLION, 0), "small": (2 * MILLION, 3 * MILLION)}


def test_models_of_the_roster_are_engines_of_their_own_and_have_their_engine_s_price_where_they_have_none():
    spent = costs.of([manifest(THREE)], Prices(**PRICES))
    assert spent.requests == 3
    assert spent.tokens == {"transformers": 2 * MILLION, "large": MILLION, "small": 5 * MILLION}
    assert spent.money == 10 + 2 * 1 + 3 * 2, "the parent's tokens have no price"
    assert spent.total_tokens == 8 * MILLION


def test_gpu_hours_are_paid_by_the_time_that_gpus_were_held():
    spent = costs.of([manifest({}, gpus=["H100", "H100"], gpu_seconds=5400.0), manifest({})], Prices(**PRICES))
    assert (spent.gpu_hours, spent.money) == (1.5, 3.0)


def test_hours_in_which_stages_ran_side_by_side_count_once():
    later = manifest({}, finished="2026-01-01T10:40:00+00:00")
    pause = manifest({}, finished="2026-01-01T13:00:00+00:00", seconds={"run": 360.0})
    assert costs.of([later, manifest({}), pause], None).hours == pytest.approx((40 + 6) / 60)
    assert costs.of([], None) == Costs()


def test_without_prices_there_is_no_money_and_free_is_not_the_same():
    assert costs.of([manifest(THREE)], None).money is None
    assert costs.of([manifest(THREE)], Prices()).money == 0


def test_a_manifest_from_before_models_were_told_apart_has_its_engine_s_tokens():
    old = manifest(THREE, usage={})
    assert costs.of([old], None).tokens == {"transformers": 8 * MILLION}


def test_a_run_tells_its_models_apart_and_holds_no_gpu_on_a_cpu(made):
    judged = store.manifests(made, "r2")["judge"]
    assert judged.usage["parent"] == {k: judged.tokens[k] for k in judged.usage["parent"]}
    assert judged.gpu_seconds == 0 and judged.gpus == []
    read = costs.costs(made, "r2")
    assert read.money is None
    assert read.tokens == {"fake": sum(sum(m.tokens.values()) - m.tokens["requests"] for m in store.manifests(made, "r2").values())}  # fmt: skip


def price(root, prices) -> None:
    projects.rewrite(root, lambda c: c.update(prices=prices))


def test_prices_are_those_of_today_and_make_no_stage_stale(made):
    before = {p: p.read_bytes() for p in (made / "data/plan").rglob("*/*.json")}
    price(made, {"tokens": {"fake": 1000}})
    spent = costs.costs(made, "r2")
    assert spent.money == pytest.approx(spent.total_tokens / 1000)
    assert plan.write(made) == 0
    assert {p: p.read_bytes() for p in (made / "data/plan").rglob("*/*.json")} == before


def test_prices_that_are_wrong_are_told_where_they_are_read(made):
    price(made, {"tokens": {"fake": {"promt": 1}}})
    with pytest.raises(ParamsError, match="'prompt'"):
        costs.costs(made, "r2")


RAN = ["generate@r1", "judge@r1"]


def limit(root, **limits) -> None:
    projects.rewrite(root, lambda c: c["campaign"].update(budget=limits))


def tokens(root, *addresses) -> int:
    """Tokens that `r1`'s stages spent."""
    spent = [store.manifests(root, "r1")[a.partition("@")[0]].tokens for a in addresses]
    return sum(t["prompt_tokens"] + t["completion_tokens"] for t in spent)


def test_a_budget_is_reached_by_what_the_named_stages_spent_and_by_no_others(made):
    assert budget.reached(made, RAN) is None, "there is no budget"
    limit(made, tokens=tokens(made, *RAN))
    assert budget.reached(made, RAN[:1]) is None
    assert budget.reached(made, []) is None
    assert "campaign.budget.tokens" in budget.reached(made, RAN)
    assert budget.reached(made, [RAN[0]] * 5) is None, "a stage counts once"
    assert budget.reached(made, [*RAN[:1], "critique@gone", "nothing@r1"]) is None, "a stage that failed spent nothing"


def test_the_exam_of_a_base_is_found_by_its_address(made):
    limit(made, tokens=1)
    assert "tokens spent" in budget.reached(made, ["evaluate-base@r0"])


def test_hours_and_money_are_limits_too(made):
    limit(made, hours=1e-6)
    assert "campaign.budget.hours" in budget.reached(made, RAN)
    price(made, {"tokens": {"fake": 1000}, "currency": "EUR"})
    limit(made, money=1e-3)
    assert "EUR spent" in budget.reached(made, RAN)
    limit(made, tokens=10**12, hours=10**6, money=10**6)
    assert budget.reached(made, RAN) is None


def test_a_budget_that_is_wrong_is_told(made):
    limit(made, token=5)
    with pytest.raises(ParamsError, match="'tokens'"):
        budget.reached(made, RAN)


def test_manifests_without_costs_are_read(made):
    path = made / "data/round=r1/manifests/judge.json"
    content = json.loads(path.read_text())
    for key in ("usage", "gpus", "gpu_seconds", "digest"):
        del content[key]
    path.write_text(json.dumps(content))
    assert costs.costs(made, "r1").tokens["fake"] > 0
