"""MLflow's addresses of a project: models by digest, wherever the project lies and whoever has the weights."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML

from tasks.core import models
from tasks.views._dvc_addresses import PROJECT, address, outputs

MODEL = "data/round=r1/model"
CHAT = {"messages": [{"role": "user", "content": "Tom has 3 pens. How many?"}], "max_tokens": 4}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, apart):
    """The working directory is no project, and DVC's clones are the test's own."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv(PROJECT, raising=False)


@pytest.fixture
def root(tmp_path, tiny_model, monkeypatch):
    """A project with one model, which DVC knows and its remote has."""
    from dvc.repo import Repo

    root = tmp_path / "project"
    root.mkdir()
    shutil.copytree(tiny_model, root / MODEL)
    YAML().dump({"bases": {}}, root / "params.yaml")
    YAML().dump({"stages": {"train": {"cmd": "true", "outs": [{MODEL: {"persist": True}}]}}}, root / "dvc.yaml")
    with Repo.init(str(root), no_scm=True) as repo:
        with repo.config.edit() as config:
            config["remote"]["store"] = {"url": str(tmp_path / "store")}
            config["core"]["remote"] = "store"
    keep(root)
    monkeypatch.setenv(PROJECT, str(root))
    return root


def commit(root: Path) -> str:
    """Has DVC commit and push the model; returns its md5."""
    from dvc.repo import Repo
    from fsspec.implementations.local import LocalFileSystem

    with Repo(str(root)) as repo:
        repo.commit(force=True)
        repo.push()
    return outputs(LocalFileSystem(), MODEL, str(root))[MODEL]


def keep(root: Path) -> str:
    """Has DVC commit and push the model; returns its address."""
    return address(MODEL, md5=commit(root), digest=models.digest(root / MODEL))


def forget(root: Path) -> None:
    """Removes the weights from this machine."""
    shutil.rmtree(root / MODEL)
    shutil.rmtree(root / ".dvc/cache")


def edit(root: Path) -> None:
    """Makes the round's model another one."""
    template = root / MODEL / "chat_template.jinja"
    text = template.read_text() + "\n"
    template.unlink()
    template.write_text(text)


def download(uri: str, to: Path) -> Path:
    to.mkdir()
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(to)))


def test_a_model_is_loaded_with_its_chat_template(root):
    uri = keep(root)
    loaded = mlflow.pyfunc.load_model(uri)
    [answer] = loaded.predict(CHAT)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    pipe = mlflow.transformers.load_model(uri)
    assert pipe.tokenizer.chat_template == (root / MODEL / "chat_template.jinja").read_text()
    assert not list((root / MODEL).rglob("MLmodel")), "the project is left as it is"


def test_a_project_may_be_moved(root, monkeypatch, tmp_path):
    uri = keep(root)
    moved = root.rename(tmp_path / "moved")
    monkeypatch.delenv(PROJECT)
    monkeypatch.chdir(moved / "data")
    place = download(uri, tmp_path / "to")
    assert (place / "MLmodel").is_file() and models.digest(place / "model") == models.digest(moved / MODEL)
    weights = place / "model/model.safetensors"
    assert not weights.is_symlink() and weights.stat().st_ino != (moved / MODEL / weights.name).stat().st_ino


def test_a_colleague_without_the_data_pulls_them(root, tmp_path):
    uri = keep(root)
    digest = models.digest(root / MODEL)
    forget(root)
    assert models.digest(download(uri, tmp_path / "to") / "model") == digest
    assert not (root / MODEL).exists()


def test_an_older_version_of_a_round_is_not_its_present_one(root, tmp_path):
    older, digest = keep(root), models.digest(root / MODEL)
    edit(root)
    newer = keep(root)
    assert models.digest(root / MODEL) != digest
    assert models.digest(download(older, tmp_path / "older") / "model") == digest
    assert models.digest(download(newer, tmp_path / "newer") / "model") == models.digest(root / MODEL)


def test_a_repository_of_git_is_a_project(root, tmp_path, monkeypatch):
    import projects

    uri, digest = keep(root), models.digest(root / MODEL)
    (root / ".gitignore").write_text("/data/\n/.dvc/cache\n/.dvc/tmp\n/.flywheel\n")
    config = root / ".dvc/config"
    config.write_text(config.read_text().replace("no_scm = True", "no_scm = False"))
    projects.commit(root, "a model")
    forget(root)
    monkeypatch.setenv(PROJECT, root.as_uri())
    assert models.digest(download(uri, tmp_path / "to") / "model") == digest


def test_an_adapter_comes_with_its_base(root, tmp_path, tiny_model):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = root / "data/round=r0/model"
    shutil.copytree(tiny_model, base)
    shutil.rmtree(root / MODEL)
    get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    ).save_pretrained(root / MODEL)
    config = root / MODEL / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base), "data/round=r0/model"))
    (root / MODEL / "base.json").write_text(f'{{"digest": "{models.digest(base)}"}}')
    uri = address(MODEL, digest=models.digest(root / MODEL))
    place = download(uri, tmp_path / "to")
    assert (place / "peft/adapter_model.safetensors").is_file()
    assert models.digest(place / "model") == models.digest(base)
    components = mlflow.transformers.load_model(uri, return_type="components")
    assert type(components["model"]).__name__.startswith("Peft")


@pytest.mark.parametrize("lost", ["", "files/md5/*/*[!r]"])
def test_what_nobody_has_is_told(root, tmp_path, lost):
    """Neither is it where the remote has lost the folder's entry, nor where it has lost files of it."""
    uri = keep(root)
    forget(root)
    for path in (tmp_path / "store").glob(lost) if lost else [tmp_path / "store"]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(MlflowException, match=rf"{MODEL}.*dvc push"):
        download(uri, tmp_path / "to")


def test_another_model_is_not_taken_for_it(root, tmp_path):
    uri = keep(root)
    digest = models.digest(root / MODEL)
    with pytest.raises(MlflowException, match="neither .* nor DVC has the model of digest 000"):
        download(uri.replace(digest, "0" * 64), tmp_path / "to")


@pytest.mark.parametrize("uri", ["dvc:///../secret", "dvc://host/data", "dvc:///data/../../secret"])
def test_an_address_stays_within_the_project(root, uri):
    with pytest.raises(MlflowException, match="is no path within a project"):
        mlflow.artifacts.list_artifacts(uri)


def test_a_pointer_does_not_lead_out_of_the_project(root, tmp_path):
    """A repository of somebody else may name any path as an output, and as what a model refers to."""
    (root / MODEL / "pointer.json").write_text('{"path": "../../../../elsewhere"}')
    uri = address(MODEL, digest="0" * 64, md5=commit(root))
    forget(root)
    with pytest.raises(MlflowException, match=r"pointer\.json: path '\.\./.*' leads out of the project"):
        download(uri, tmp_path / "to")


def test_without_a_project_it_says_what_to_do(monkeypatch):
    with pytest.raises(MlflowException, match=f"set {PROJECT} to its"):
        mlflow.artifacts.list_artifacts("dvc:///mlruns/0")
    monkeypatch.setenv(PROJECT, "/there/is/none")
    with pytest.raises(MlflowException, match="there is no such folder"):
        mlflow.artifacts.list_artifacts("dvc:///mlruns/0")
