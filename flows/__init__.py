"""When and where stages run: Prefect flows over `dvc repro`. What they do is in `tasks`.

Prefect is set up here, before anything imports it: its telemetry is off, and its own log goes to the server, where the
UI shows it, rather than to the terminal, where the flows print one line a stage. Variables that are already set win.
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
