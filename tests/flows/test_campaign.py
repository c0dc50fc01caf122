import pytest
from mlflow.tracking import MlflowClient

from flows.campaign import append, next_parent, promoted, run_campaign
from tasks import plan, store
from tasks.params import add_round, load_params
from tasks.record import tracking_uri


@pytest.fixture
def decide(made):
    """Writes what the gates of rounds have decided."""

    def write(**decisions: bool) -> None:
        for name, passed in decisions.items():
            manifest = store.manifests(made, name)["gate"]
            changed = manifest.model_copy(update={"metrics": {"promoted": float(passed)}})
            (made / f"data/round={name}/manifests/gate.json").write_text(changed.model_dump_json())

    return write


def test_the_next_round_starts_from_the_last_promoted(made, decide):
    decide(r1=True, r2=True)
    assert promoted(made, "r2")
    assert next_parent(made, "stop") == "r2"
    assert append(made, "r2") == "r3"
    block = load_params(made).block("r3")
    assert (block.parent, block.base) == ("r2", "r0")
    assert block.raw["generate"] == load_params(made).block("r2").raw["generate"]
    assert block.seed != load_params(made).block("r2").seed


def test_a_refused_round_is_branched_around_or_stops_the_campaign(made, decide):
    decide(r1=True, r2=False)
    assert next_parent(made, "branch") == "r1"
    assert next_parent(made, "stop") is None


def test_when_all_were_refused_the_base_is_the_parent(made, decide):
    decide(r1=False, r2=False)
    assert next_parent(made, "branch") == "r0"


def test_the_last_round_is_the_last_of_the_file_whatever_its_parent(made, decide):
    add_round(made, "r3", "r0", ["generate.samples=5"])
    decide(r1=True, r2=True)
    assert plan.rounds(made) == ["r1", "r2", "r3"]
    assert next_parent(made, "stop") is None
    assert append(made, "r1") == "r4"
    assert load_params(made).block("r4").stages["generate"].samples == 5


def test_a_round_without_a_decision_is_not_promoted(made):
    (made / "data/round=r2/manifests/gate.json").unlink()
    assert not promoted(made, "r2")


def test_a_campaign_appends_the_round_that_is_missing_runs_it_and_publishes_it(made):
    """Through Prefect (its ephemeral server) and DVC."""
    assert run_campaign(3) == ["r1", "r2", "r3"]
    assert load_params(made).block("r3").parent == "r0", "both gates had refused"
    assert plan.stale(made, "r3") == []
    client = MlflowClient(tracking_uri(made))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {"r0", "r1", "r2", "r3", "gate@r3"} <= {run.info.run_name for run in runs}
