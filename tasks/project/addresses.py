"""DVC's addresses of stages: `judge@r2`, or from another folder `../dvc.yaml:judge@r2`."""

import re

from tasks.core.errors import ParamsError
from tasks.project.problems import NAME, NAMING

DVC_FILE = "dvc.yaml"


def block_name(address: str, stage: str) -> str:
    """The base or round that an address of a stage names, as DVC writes it in DVC_STAGE. A name alone is one, too.

    Raises:
        ParamsError: when it is no name.
    """
    if match := re.fullmatch(
        rf"(?:(?:[^@]*/)?{re.escape(DVC_FILE)}:)?(?:{re.escape(stage)}(?:-base)?@)?({NAME})", address
    ):
        return match[1]
    raise ParamsError(f"params.yaml: {address!r} names no base or round: {NAMING}; rename it")
