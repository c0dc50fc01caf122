"""First-party modules that a module runs: its imports, direct and indirect, read from the source without importing.

Code that decides rows must be in a stage's plan. `PLUMBING` is left out: it moves rows and files and makes none.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

PACKAGE = "tasks"
PLUMBING = {
    "tasks.core._checks": "refuses rows that break a table's checks; the plan holds the table's digest",
    "tasks.core._parts": "writes the rows of a table as they are",
    "tasks.core._staging": "moves committed files into place",
    "tasks.core.cache": "returns stored answers; its keys hold all that decides an answer",
    "tasks.core.commits": "commits results in a bucket, and fetches them byte by byte",
    "tasks.core.devices": "locks a device",
    "tasks.core.errors": "exception classes and messages",
    "tasks.core.manifest": "the format of manifests",
    "tasks.core.meanings": "what metrics mean, in words",
    "tasks.core.objects": "puts and reads objects byte by byte",
    "tasks.core.plan": "the format of plans",
    "tasks.core.plugin": "loads plug-ins by name; the plan holds the names and their code",
    "tasks.core.pointers": "says where the parts of a table are, and opens them",
    "tasks.core.remembered": "remembers which bytes were checked",
    "tasks.core.stage": "declares stages; the plan holds the declarations",
    "tasks.core.store": "writes and reads tables whole, and checks every byte",
    "tasks.where": "runs pieces, and ranks of a training, where a block says; no row depends on it",
    "tasks.core.tables": "the plan holds the digests of the tables that a stage writes",
    "tasks.engines._vllm_server": "the process of a server, whose arguments and requests are made in modules that plans name",
}
"""Modules that no plan names, each with the reason."""


SCANS = Path(".flywheel/imports.json")
"""What modules import, remembered; may be deleted at any time."""
Scans = dict[str, tuple[list[str], bool]]
"""sha256 of a module's file → the first-party modules that it imports, and whether it has code."""


class Modules:
    """The first-party modules of a project as they are now: each is looked up and read once, for many closures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scans = _recall(root)
        self._seen: Scans = {}
        self._known: dict[str, tuple[str, str, list[str]] | None] = {}
        self._closures: dict[frozenset[str], dict[str, str]] = {}

    def closure(self, modules: Iterable[str]) -> dict[str, str]:
        """File (relative to the project) → sha256, of modules and of all first-party modules that they import, also inside
        functions. Left out: imports under `if TYPE_CHECKING`, and an `__init__` without code.
        """
        wanted = frozenset(modules)
        if wanted not in self._closures:
            self._closures[wanted] = self._closure(wanted)
        return dict(self._closures[wanted])

    def _closure(self, modules: Iterable[str]) -> dict[str, str]:
        files: dict[str, str] = {}
        seen: set[str] = set()
        queue = list(modules)
        while queue:
            module = queue.pop()
            if module in seen or module in PLUMBING:
                continue
            seen.add(module)
            if found := self._scanned(module):
                file, digest, more = found
                files |= {file: digest} if file else {}
                queue += more
        return dict(sorted(files.items()))

    def _scanned(self, module: str) -> tuple[str, str, list[str]] | None:
        """The file of a module (empty without code), its digest, and the modules that it runs; None where it is no module."""
        if module not in self._known:
            path = module_file(self.root, module)
            self._known[module] = None
            if path is not None:
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                imports, has_code = self._seen[digest] = self._scans.get(digest) or _scan(content)
                file = path.relative_to(self.root).as_posix() if has_code else ""
                self._known[module] = file, digest, [*imports, *_packages(module)]
        return self._known[module]

    def keep(self) -> None:
        """Remembers what the modules import that were looked up, and forgets others."""
        if self._seen.keys() != self._scans.keys():
            path = self.root / SCANS
            new = path.with_name(f"{path.name}.{os.getpid()}.new")
            with suppress(OSError):  # a full or read-only disk: modules are parsed again
                path.parent.mkdir(exist_ok=True)
                new.write_text(json.dumps({"by": _own_digest(), "modules": self._seen}), encoding="utf-8")
                new.replace(path)


def closure(root: Path, modules: Iterable[str]) -> dict[str, str]:
    """The closure of some modules of a project, as `Modules` computes it."""
    return Modules(root).closure(modules)


def module_file(root: Path, module: str) -> Path | None:
    """The file of a first-party module; None where the name is not a module's (a class in one, for example)."""
    place = root / module.replace(".", "/")
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


def _packages(module: str) -> list[str]:
    """The parent packages of a module, whose `__init__` Python runs first."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _recall(root: Path) -> Scans:
    """What is remembered of modules; nothing where this file has changed since, or theirs is damaged."""
    try:
        kept = json.loads((root / SCANS).read_bytes())
        return TypeAdapter(Scans).validate_python(kept["modules"]) if kept["by"] == _own_digest() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@cache
def _own_digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _scan(content: bytes) -> tuple[list[str], bool]:
    """The imports of a module, and whether it has code."""
    tree = ast.parse(content)
    has_code = any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in tree.body)
    return sorted(set(_imports(tree))), has_code


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node except those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _runtime_nodes(other)
            continue
        yield node
        yield from _runtime_nodes(node)
