"""`make demo`: runs the base and three rounds on a local Prefect server, and prints the table of results."""

import time
from pathlib import Path

from tasks.__main__ import guarded
from tasks.project import graph
from tasks.views.record import record
from tasks.views.report import show

ROUNDS = 3
NEXT = """
Try next:
  flywheel sql "select round, name, value from metrics where name = 'pass_at_1' order by round"
  flywheel round add r4 --parent r3 --set generate.sample.temperature=0.9 && flywheel run r4 --dry-run
  dvc metrics show          # all measures of all rounds; `dvc dag` draws the stages
  flywheel up               # Prefect at http://127.0.0.1:4200, MLflow at http://127.0.0.1:5000; `flywheel down` stops them
  flywheel promote r2       # moves the registered model's alias, forward or back
"""


def demo(root: Path) -> None:
    """Brings all rounds of params.yaml up to date, prints their table and what to try next.

    Raises:
        FlywheelError: any subclass. Finished stages stay, and the next call resumes from them.
    """
    rounds = graph.rounds(root)[:ROUNDS]
    stale = graph.stale(root, *rounds)
    if stale or len(rounds) < ROUNDS:
        _run(root, len(stale))
    else:
        print("Everything is up to date: nothing to run.")
        print(record(root))  # a kill after the last stage may have left it undone
    show(root)
    print(NEXT)


def _run(root: Path, stages: int) -> None:
    from flows.services import server

    clock = time.perf_counter()
    print(f"{stages} stages to run. Starting a Prefect server, unless one is running ...", flush=True)
    with server(root) as api:
        print(f"Prefect: {api.removesuffix('/api')}", flush=True)
        from flows.campaign import run_campaign

        run_campaign(ROUNDS)
    print(f"Done in {(time.perf_counter() - clock) / 60:.1f} minutes.\n")


if __name__ == "__main__":
    guarded(lambda: demo(Path()))
