"""Prefect flows over `dvc repro`: when and where stages run. The stages themselves are in `tasks`.

Configures Prefect before anything imports it: telemetry off, Prefect's log to the server (the UI shows it), not to the
terminal, where flows print one line a stage, a sign of life of each run often enough for `flows.crashes`, and leases of
concurrency limits in PREFECT_HOME. Variables that are already set take precedence.
"""

import os

HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
"""Seconds between two signs of life of a flow run; Prefect allows no fewer. Workers pass it on to what they run."""
UNTIL_STDIN_CLOSES = "--until-stdin-closes"
"""The option of `flows.server` with which it ends when its standard input does."""
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # In the server's memory they would be lost when it is restarted: runs that hold one end then, and the limit stays taken.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "flows.leases",
    **HEARTBEAT,
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
