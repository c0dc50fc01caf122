"""Addresses within a DVC project, and what its dvc.lock knows; without MLflow, which takes a second to import."""

from typing import Any
from urllib.parse import urlencode

from tasks.project import lockfile

LOCK = lockfile.FILE
PROJECT = "FLYWHEEL_PROJECT"
"""Environment variable that names the project's folder, or the address of its git repository."""


def address(path: str, **query: str | None) -> str:
    """The address of a path within the project; arguments that are None are left out."""
    known = {k: v for k, v in query.items() if v is not None}
    return f"dvc:///{path}" + (f"?{urlencode(known)}" if known else "")


def outputs(files: Any, path: str, folder: str = "/") -> dict[str, str]:
    """Path → MD5 of a path, and of the other outputs of its stages, in the dvc.lock of a folder on a file system of fsspec."""
    lock = f"{folder.rstrip('/')}/{LOCK}"
    return lockfile.outs(files.read_text(lock, encoding="utf-8"), path) if files.exists(lock) else {}
