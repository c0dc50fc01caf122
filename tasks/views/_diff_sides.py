"""The two sides of a diff: a round as it is, or as it was at a git revision (`r2@v1`).

The data of a revision are those that its dvc.lock names. They are taken from DVC's cache, after a fetch from the remote
where the cache lacks some, and linked into a temporary folder that looks like a project; no file of the working tree is
touched. Weights are not fetched: their digests are in the manifests.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tasks.core import labels, store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.core.pointers import StoredPath
from tasks.core.store import Manifest
from tasks.core.tables import TABLES
from tasks.project import lockfile
from tasks.project.params import FILE, SEEDS, Block, load_params
from tasks.views._dvc_addresses import LOCK


@dataclass(frozen=True)
class Side:
    """A round or base, now or at a revision."""

    label: str
    """As the user wrote it: `r2` or `r2@v1`."""
    name: str
    root: Path
    """The project, or a temporary folder with the round's data of a revision."""
    manifests: dict[str, Manifest]
    block: Block | None = None
    """Its block of params.yaml; None where that no longer has it or cannot be read by this code."""
    project: Path | None = None
    """The project, where `root` is a revision's folder."""

    def output(self, table: str) -> store.Output | None:
        """The table's entry in the manifests; None where no stage has written it."""
        return next((m.outputs[table] for m in self.manifests.values() if table in m.outputs), None)

    def parts(self, table: str) -> list[StoredPath]:
        """The files of a table, resolved, or objects. Their digests are checked.

        Raises:
            StoreError: when one is missing or was changed.
        """
        place, output = store.find(self.root, self.name, table)
        store.verify(place, output)
        return [path.resolve() for path in store.paths(place, output)]


@contextmanager
def open_sides(root: Path, old: str, new: str) -> Iterator[tuple[Side, Side]]:
    """Yields both sides of a diff.

    Raises:
        UnknownName: for a round or base that does not exist, with the nearest names.
        FlywheelError: when both are the same, a round has no data yet, or a revision or its data cannot be found.
    """
    name = old.partition("@")[0]
    blocks = cache(lambda: load_params(root).blocks)
    with ExitStack() as stack:
        sides = [stack.enter_context(_open(root, text, blocks)) for text in (old, new)]
        if old == new:
            raise FlywheelError(
                f"both sides are {old}: name another round, or an older version, as in `flywheel diff {name}@HEAD~1 {name}`"
            )
        yield sides[0], sides[1]


@contextmanager
def _open(root: Path, text: str, blocks: Callable[[], dict[str, Block]]) -> Iterator[Side]:
    name, at, revision = text.partition("@")
    if at:
        with TemporaryDirectory(prefix="flywheel-diff-") as folder:
            yield _at_revision(root, Path(folder), text, name, revision)
    else:
        yield _current(root, name, blocks())


def _current(root: Path, name: str, blocks: dict[str, Block]) -> Side:
    on_disk = {p.name.removeprefix("round=") for p in (root / "data").glob("round=*")}
    if name not in blocks and name not in on_disk:
        raise UnknownName("round or base", name, {*blocks, *on_disk}, FILE)
    manifests = store.manifests(root, name)
    if not manifests:
        raise FlywheelError(f"{name} has no data yet; `flywheel run {name}` makes it")
    return Side(name, name, root, manifests, blocks.get(name))


# A revision


def _at_revision(root: Path, folder: Path, label: str, name: str, revision: str) -> Side:
    with _repository(root, label) as repo:
        tree = _Tree(repo, label, revision)
        outs = tree.outs(name)
        digests = {path: digest for path, digest in outs.items() if _is_wanted(path)}
        _fetch_missing(repo, label, tree.sha, digests)
        for path, digest in digests.items():
            _link(repo, folder, path, digest)
        if (model := outs.get(f"data/round={name}/model")) and _cached(repo, model).is_file():
            _link_descriptions(repo, folder, f"data/round={name}/model", model)
        tree.copy_settings(folder)
    block = None
    with suppress(FlywheelError):  # written for another version of the code
        block = load_params(folder).blocks.get(name)
    return Side(label, name, folder, store.manifests(folder, name), block, root)


@contextmanager
def _repository(root: Path, label: str) -> Iterator[Any]:
    """The project's DVC repository, which must be in git. DVC's own errors become FlywheelErrors."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with Repo(str(root)) as repo:
            if isinstance(repo.scm, NoSCM):
                raise FlywheelError(f"{label}: a revision needs git, and this project's DVC runs without (core.no_scm)")
            yield repo
    except DvcException as error:
        raise FlywheelError(f"{label}: DVC cannot read that revision: {error}") from error
    finally:
        logger.setLevel(level)


class _Tree:
    """What git has of the project at a revision."""

    def __init__(self, repo: Any, label: str, revision: str) -> None:
        from dvc.fs import GitFileSystem
        from dvc.scm import RevError, resolve_rev

        try:
            self.sha = resolve_rev(repo.scm, revision) if revision else ""
        except (RevError, ValueError):  # libgit2's own, for a name that no reference can have
            self.sha = ""
        if not self.sha:
            raise FlywheelError(
                f"{label}: git has no revision {revision!r}; name a commit, branch or tag, such as HEAD~1 (`git log -- {LOCK}` "
                "lists the versions of the data)"
            )
        self.label, self.files = label, GitFileSystem(scm=repo.scm, rev=self.sha)
        self.top = "/" + Path(repo.root_dir).resolve().relative_to(Path(repo.scm.root_dir).resolve()).as_posix().strip(
            "."
        )

    def _path(self, name: str) -> str:
        return f"{self.top.rstrip('/')}/{name}"

    def outs(self, name: str) -> dict[str, str]:
        """The outs of a round's stages, path → md5, as dvc.lock has them."""
        if not self.files.exists(self._path(LOCK)):
            raise FlywheelError(
                f"{self.label}: git has no {LOCK} at that revision, so it does not know the data; commit {LOCK} after a run"
            )
        text, folder = self.files.read_text(self._path(LOCK), encoding="utf-8"), f"data/round={name}/"
        if outs := {path: md5 for path, md5 in lockfile.outs(text, folder).items() if path.startswith(folder)}:
            return outs
        rounds = sorted(
            {p.split("/")[1].removeprefix("round=") for p in lockfile.outs(text) if p.startswith("data/round=")}
        )
        raise UnknownName("round or base", name, rounds, f"{LOCK} at {self.sha[:8]}")

    def copy_settings(self, folder: Path) -> None:
        """Copies params.yaml, the recipes, the seeds and people's labels, by which settings are explained."""
        for name in (FILE, "recipes", SEEDS, labels.FOLDER):
            if self.files.exists(self._path(str(name))):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.files.get(self._path(str(name)), str(folder / name))


def _is_wanted(path: str) -> bool:
    """Whether an out is a table or a manifest."""
    place = path.split("/")[2:]
    return place[0] in TABLES or place[0] == "manifests"


def _fetch_missing(repo: Any, label: str, sha: str, digests: dict[str, str]) -> None:
    """Fetches what the cache lacks from the remote.

    Raises:
        StoreError: naming what neither has.
    """
    from dvc.exceptions import DvcException

    missing = [path for path, digest in digests.items() if not _is_cached(repo, digest)]
    if not missing:
        return
    reason = "the remote does not have it either" if repo.config["core"].get("remote") else "there is no remote"
    try:
        repo.fetch(targets=missing, revs=[sha], workspace=False)
    except DvcException as error:
        reason = f"the remote did not give it ({str(error).splitlines()[0]})"
    if lost := [path for path in missing if not _is_cached(repo, digests[path])]:
        raise StoreError(
            f"{label}: {_listed(lost)} of that revision is not in DVC's cache, and {reason}; where it still is, `dvc push` "
            f"sends it to a remote, or check out {sha[:8]} and run the round there"
        )


def _listed(paths: Sequence[str]) -> str:
    return paths[0] + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else "")


def _is_cached(repo: Any, digest: str) -> bool:
    """Whether the cache has an out with all its files."""
    place = _cached(repo, digest)
    return place.is_file() and all(_cached(repo, md5).is_file() for md5 in _entries(place, digest).values())


def _cached(repo: Any, digest: str) -> Path:
    return Path(repo.cache.local.oid_to_path(digest))


def _entries(place: Path, digest: str) -> dict[str, str]:
    """File → md5 of a folder's entry in the cache; empty for a file's."""
    return {e["relpath"]: e["md5"] for e in json.loads(place.read_bytes())} if digest.endswith(".dir") else {}


def _link(repo: Any, folder: Path, path: str, digest: str) -> None:
    entries = _entries(_cached(repo, digest), digest)
    _link_files(repo, folder, {f"{path}/{file}": md5 for file, md5 in entries.items()} or {path: digest})


def _link_descriptions(repo: Any, folder: Path, path: str, digest: str) -> None:
    """Links what the cache has of a model beside its weights: pointer and adapter say what weights they stand for."""
    entries = _entries(_cached(repo, digest), digest)
    known = {f: md5 for f, md5 in entries.items() if f.endswith(".json") and _cached(repo, md5).is_file()}
    _link_files(repo, folder, {f"{path}/{file}": md5 for file, md5 in known.items()})


def _link_files(repo: Any, folder: Path, files: dict[str, str]) -> None:
    for file, md5 in files.items():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(_cached(repo, md5))
