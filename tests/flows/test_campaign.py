import pytest
from mlflow.tracking import MlflowClient

from flows import campaign
from flows.campaign import append, run_campaign
from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.project import champion, graph
from tasks.project.edit import add_round
from tasks.project.params import load_params
from tasks.views.record import tracking_uri


@pytest.fixture
def decide(made):
    """Writes what the gates of rounds have decided."""

    def write(**decisions: bool) -> None:
        for name, passed in decisions.items():
            manifest = store.manifests(made, name)["gate"]
            changed = manifest.model_copy(update={"metrics": {"promoted": float(passed)}})
            (made / f"data/round={name}/manifests/gate.json").write_text(changed.model_dump_json())

    return write


def test_a_round_that_is_appended_is_made_as_the_last_one(made):
    add_round(made, "r3", "r0", ["generate.sample.samples=5"])
    assert graph.rounds(made) == ["r1", "r2", "r3"]
    assert append(made, "r1") == "r4"
    block = load_params(made).block("r4")
    assert (block.parent, block.base, block.recipe) == ("r1", "r0", "small")
    assert block.stages["generate"].members["sample"].samples == 5
    assert block.seed == load_params(made).block("r3").seed + 1


def test_a_refused_round_is_branched_around_or_stops_the_campaign(made, decide):
    decide(r1=True, r2=False)
    params = load_params(made)
    assert champion.next_parent(made, params) == "r0", "what was promoted is not better than the base"
    assert champion.next_parent(made, params, stop=True) is None


def test_a_campaign_appends_the_round_that_is_missing_runs_it_and_publishes_it(made):
    """Through Prefect (its ephemeral server) and DVC."""
    assert run_campaign(more=1) == ["r1", "r2", "r3"]
    assert load_params(made).block("r3").parent == "r0", "no round is better than the base"
    assert graph.stale(made, "r3") == []
    client = MlflowClient(tracking_uri(made))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {"r0", "r1", "r2", "r3", "gate@r3"} <= {run.info.run_name for run in runs}


def test_a_run_that_is_tried_again_appends_no_further_round(made, monkeypatch):
    monkeypatch.setattr(campaign, "_file", lambda: made / ".flywheel/campaigns/a.json")
    assert campaign._begin(made, 3, more=2).rounds == 4
    append(made, "r1")
    assert campaign._begin(made, 3, more=2).rounds == 4
    monkeypatch.setattr(campaign, "_file", lambda: made / ".flywheel/campaigns/b.json")
    assert campaign._begin(made, 3, more=1).rounds == 4, "another night is one round more"
    assert campaign._begin(made, 9, more=0).rounds == 4


def test_an_appended_round_can_be_of_another_recipe(made):
    assert append(made, "r1", "sharpen") == "r3"
    assert load_params(made).block("r3").recipe == "sharpen"


@pytest.mark.parametrize(
    ("parameters", "message"), [({"approve": True}, "flywheel up"), ({"recipe": "sharpn"}, "did you mean 'sharpen'")]
)
def test_what_cannot_work_is_said_before_anything_runs(made, parameters, message):
    with pytest.raises(FlywheelError, match=message):
        run_campaign(**parameters)
