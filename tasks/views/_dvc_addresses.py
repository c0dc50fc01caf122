"""Addresses within a DVC project, and what its dvc.lock knows; without MLflow, which takes a second to import."""

from typing import Any
from urllib.parse import urlencode

LOCK = "dvc.lock"
PROJECT = "FLYWHEEL_PROJECT"
"""Environment variable that names the project's folder, or the address of its git repository."""


def address(path: str, **query: str | None) -> str:
    """The address of a path within the project; arguments that are None are left out."""
    known = {k: v for k, v in query.items() if v is not None}
    return f"dvc:///{path}" + (f"?{urlencode(known)}" if known else "")


def outputs(files: Any, folder: str = "/") -> dict[str, str]:
    """Path → md5 of every output in the dvc.lock of a folder, on a file system of fsspec."""
    from ruamel.yaml import YAML

    lock = f"{folder.rstrip('/')}/{LOCK}"
    if not files.exists(lock):
        return {}
    with files.open(lock, mode="r", encoding="utf-8") as file:
        stages = (YAML(typ="safe").load(file) or {}).get("stages", {})
    return {o["path"]: o["md5"] for s in stages.values() for o in s.get("outs", ()) if "md5" in o}
