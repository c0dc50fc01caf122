"""Prefect flows over `dvc repro`: when and where stages run. The stages themselves are in `tasks`.

Configures Prefect before anything imports it: telemetry off, and Prefect's log to the server (the UI shows it), not to the
terminal, where flows print one line a stage. Variables that are already set take precedence.
"""

import os

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
