"""What `make demo` runs: the base and three rounds on a local Prefect server, and the table of what came out."""

import time
from pathlib import Path

from tasks import plan
from tasks.__main__ import guarded
from tasks.record import record
from tasks.report import show

ROUNDS = 3
NEXT = """
Try next:
  flywheel sql "select round, name, value from metrics where name = 'pass_at_1' order by round"
  flywheel round add r4 --parent r3 --set generate.temperature=0.9 && flywheel run r4 --dry-run
  dvc metrics show          # all measures of all rounds; `dvc dag` draws the stages
  flywheel up               # Prefect at http://127.0.0.1:4200, MLflow at http://127.0.0.1:5000; `flywheel down` ends them
  flywheel promote r2       # moves the registered model's alias, forward or back
"""


def demo(root: Path) -> None:
    """Brings all rounds of params.yaml up to date, shows their table and what to try next.

    Raises:
        FlywheelError: in all its kinds; what was already made stays, and the next call goes on from there.
    """
    rounds = plan.rounds(root)[:ROUNDS]
    stale = plan.stale(root, *rounds)
    if stale or len(rounds) < ROUNDS:
        _run(root, len(stale))
    else:
        print("All is up to date: there is nothing to run.")
        print(record(root))  # which a kill after the last stage had left undone
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
