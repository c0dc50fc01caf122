"""A saved view of MLflow's runs table, so that it shows what matters without set-up.

MLflow keeps saved views as tags of the experiment: their state as JSON, deflated, in base64. Open it from the menu *Views*, or
as `#/experiments/<id>/runs?viewStateShareKey=rounds`.
"""

import base64
import json
import zlib

from tasks.views.record._facts import HEADLINE

KEY = "rounds"
COLUMNS = [
    *(
        f"metrics.`{HEADLINE}/{name}`"
        for name in ("pass_at_1", "greedy", "promoted", "kept", "training_rows", "seconds")
    ),
    *(f"params.`{name}`" for name in ("parent", "recipe")),
    "attributes.`Models`",
]
STATE = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": COLUMNS,
    "columnOrder": COLUMNS,
    "columnWidths": dict.fromkeys(COLUMNS, 170),
    "runsHiddenMode": "FIRST_10_RUNS",
    "viewMaximized": False,
    "runListHidden": False,
    "isAccordionReordered": False,
    "useGroupedValuesInCharts": True,
    "hideEmptyCharts": True,
    "groupBy": None,
    "groupsExpanded": {},
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
}


def _tag() -> str:
    state = base64.b64encode(zlib.compress(json.dumps(STATE, separators=(",", ":")).encode())).decode()
    return json.dumps({"name": "Rounds", "createdAt": 0, "updatedAt": 0, "state": f"deflate;{state}"})


SAVED_VIEW = {f"mlflow.sharedViewState.{KEY}": _tag()}
"""Tag of the experiment."""
