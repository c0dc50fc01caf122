"""MLflow's artifact repository for `dvc://` addresses: paths within a DVC project, wherever that lies.

    dvc:///mlruns/<run>/artifacts                                  a folder of the project
    dvc:///data/round=r2/model?digest=3f1f…&md5=9a0c….dir          a model, by the digest of its weights

The project is the folder that FLYWHEEL_PROJECT names, or the nearest one above the working directory that has a
params.yaml. No address names the folder itself, so the project may be moved, and a colleague's clone does as well.

A model is looked for in the project, then in DVC's cache, then in its remote, and it must have the digest: a round that
was run again has another model under the same path. FLYWHEEL_PROJECT may be the address of a git repository, too.
What MLflow's flavour `transformers` expects beside the weights (`MLmodel`, the tokenizer in a folder of its own) is made
when the model is opened; weights are linked where the file system can, else copied. A LoRA adapter comes with its base.

MLflow imports this module whenever it is imported, so it imports nothing heavy; nobody else does.
"""

import atexit
import json
import logging
import os
import platform
import shutil
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mlflow.exceptions import MlflowException  # noqa: TID253 MLflow imports this module itself
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository  # noqa: TID253

from tasks.views._dvc_addresses import LOCK, PROJECT, outputs

WEIGHTS, TOKENIZER, ADAPTER = "model", "components/tokenizer", "peft"
"""Folders of an MLflow model of the flavour `transformers`."""
FETCHED = ".fetched"
ADVICE = "`dvc push` where it still is sends it to the remote"
REQUIREMENTS = ("mlflow", "torch", "transformers", "accelerate")


class DvcArtifactRepository(LocalArtifactRepository):
    """Artifacts at a path of the project: an ordinary folder, or a model as MLflow's flavour `transformers` has it."""

    @property
    def artifact_dir(self) -> str:
        """The folder on this machine. A model's is temporary; it is removed when the process ends."""
        parts = urlsplit(self.artifact_uri)
        path = PurePosixPath(parts.path.lstrip("/"))
        if parts.netloc or not path.parts or ".." in path.parts:
            raise _error(f"{self.artifact_uri}: is no path within a project, such as dvc:///data/round=r1/model")
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        if "digest" in query:  # MLflow may ask for the folder above the model, too, or for one within it
            round_folder = PurePosixPath(*path.parts[:2])
            folder = _model(project(), str(round_folder / WEIGHTS), query["digest"], query.get("md5"))
            return str(Path(folder, path.relative_to(round_folder)))
        return str(Path(_folder(project()), path))


def project() -> str:
    """The project's folder, or the address of its git repository.

    Raises:
        MlflowException: when there is none.
    """
    if named := os.environ.get(PROJECT):
        return named
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return str(folder)
    raise _error(
        f"no project above {here} (a folder with params.yaml and dvc.yaml): go to the project, or set {PROJECT} to its "
        "folder or to the address of its git repository"
    )


def _folder(named: str) -> Path:
    if not Path(named).is_dir():
        raise _error(f"{PROJECT}={named}: there is no such folder, and only models can be had from a git repository")
    return Path(named)


def _error(message: str) -> MlflowException:
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    return MlflowException(message, error_code=RESOURCE_DOES_NOT_EXIST)


# Models


@lru_cache(maxsize=64)
def _model(named: str, path: str, digest: str, md5: str | None) -> str:
    """A temporary folder with the model in its subfolder `model`, as MLflow expects it."""
    from tasks.core.errors import FlywheelError

    place = Path(named)
    scratch = place / ".flywheel" if place.is_dir() else None  # on the weights' own device, so that they can be linked
    if scratch:
        scratch.mkdir(exist_ok=True)
    target = Path(mkdtemp(prefix="mlflow-model-", dir=scratch))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    try:
        if weights := _weights(place, path, digest):
            _assemble(weights, target / WEIGHTS)
        else:
            _fetch(named, path, md5, target / FETCHED)
            if not (weights := _weights(target / FETCHED, path, digest)):
                raise _error(f"{path}: neither {named} nor DVC has the model of digest {digest[:12]}…; {ADVICE}")
            _assemble(weights, target / WEIGHTS)
            shutil.rmtree(target / FETCHED)
    except FlywheelError as error:
        raise _error(str(error)) from error
    return str(target)


def _weights(root: Path, path: str, digest: str) -> Path | None:
    """The folder of the model itself, if it has the digest; None where the project has none, or another one."""
    from tasks.core import models
    from tasks.core.errors import ModelRefused

    folder = root / path
    pointer = folder / models.POINTER
    try:
        if pointer.is_file() and (named := json.loads(pointer.read_text()).get("path")):
            folder = root / named  # a pointer's path is relative to the project
        models.check(folder)
        return models.resolve(folder) if models.digest(folder) == digest else None
    except (ModelRefused, ValueError):
        return None


def _assemble(folder: Path, target: Path) -> None:
    """Links or copies a model's files into MLflow's layout, and writes `MLmodel`."""
    from tasks.core import models

    whole, tokenizer = models.layout(folder)
    _link(whole, target / WEIGHTS)
    _link(tokenizer, target / TOKENIZER, skip=".safetensors")
    if models.is_adapter(folder):
        _link(folder, target / ADAPTER)
    (target / "requirements.txt").write_text("".join(f"{name}=={version(name)}\n" for name in REQUIREMENTS))
    content = _description(folder.parent.name, (target / ADAPTER).is_dir())
    (target / "MLmodel").write_text(json.dumps(content, indent=1))  # JSON is YAML


def _link(source: Path, target: Path, skip: str | None = None) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != skip:
            try:
                os.link(file.resolve(), target / file.name)
            except OSError:  # another device, or a file system without links
                shutil.copy2(file, target / file.name)


def _description(name: str, is_adapter: bool) -> dict[str, Any]:
    """Content of `MLmodel`: a pipeline for `mlflow.transformers`, chat completions as OpenAI has them for `mlflow.pyfunc`.
    Classes are `Auto…`, which take what the config names and run no code of the model's own.
    """
    common = {"model_binary": WEIGHTS, "task": "text-generation"}
    pyfunc = common | {"loader_module": "mlflow.transformers", "python_version": platform.python_version()}
    transformers = common | {
        "inference_task": "llm/v1/chat",
        "instance_type": "TextGenerationPipeline",
        "pipeline_model_type": "AutoModelForCausalLM",
        "source_model_name": name,
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
        "transformers_version": version("transformers"),
        "code": None,
    }
    adapter = {"peft_adaptor": ADAPTER} if is_adapter else {}
    flavors = {"python_function": pyfunc, "transformers": transformers | adapter}
    return {"flavors": flavors, "mlflow_version": version("mlflow")}


# DVC


def _fetch(named: str, path: str, md5: str | None, target: Path) -> None:
    """Checks the model out of DVC's cache or remote into a folder that looks like the project: the content that `md5` names,
    else the one of today's dvc.lock; with what its pointer or adapter refers to.

    Raises:
        MlflowException: when DVC does not have it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        with Repo.open(named) as repo:
            if not (known := md5 or outputs(repo.dvcfs, path).get(path)):
                raise _error(f"{path}: is not in {named}, and no {LOCK} there knows it; {ADVICE}")
            _checkout(repo, known, target / path)
            if (other := _reference(target / path)) is None:
                return
            if found := outputs(repo.dvcfs, other).get(other):
                _checkout(repo, found, target / other)
            elif repo.dvcfs.isdir(f"/{other}"):
                repo.dvcfs.get(f"/{other}", str(target / other), recursive=True)
    except (DvcException, SCMError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise _error(f"{path}: DVC cannot get it from {named}: {first}; {ADVICE}") from error


def _reference(folder: Path) -> str | None:
    """The model within the project that a pointer or an adapter refers to.

    Raises:
        MlflowException: when it leads out of the project.
    """
    from tasks.core.models import ADAPTER as CONFIG
    from tasks.core.models import POINTER

    keys = {POINTER: "path", CONFIG: "base_model_name_or_path"}
    for file, key in keys.items():
        if (folder / file).is_file() and (named := json.loads((folder / file).read_text()).get(key)):
            if ".." in Path(named).parts:  # what a repository says must not decide where files are written
                raise _error(f"{folder / file}: {key} {named!r} leads out of the project")
            return None if Path(named).is_absolute() else str(named)
    return None


def _checkout(repo: Any, md5: str, target: Path) -> None:
    from dvc.fs import localfs
    from dvc_data.hashfile import load
    from dvc_data.hashfile.checkout import CheckoutError, checkout
    from dvc_data.hashfile.hash_info import HashInfo

    info, cache = HashInfo("md5", md5), repo.cache.local
    if not cache.exists(md5):
        repo.cloud.pull([info])
    files = [oid for _, _, oid in load(cache, info)]
    if missing := [oid for oid in files if not cache.exists(oid.value)]:
        repo.cloud.pull(missing)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        checkout(str(target), localfs, load(cache, info), cache=cache, quiet=True)
    except CheckoutError as error:
        raise OSError(f"the remote lacks some of its files ({error})") from error
