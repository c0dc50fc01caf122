"""Downloading from a hub: the real client against a hub of a few lines on this machine."""

import hashlib
import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from tasks import base as stage
from tasks.base.hub import Hub
from tasks.core import models
from tasks.core.errors import FlywheelError, ModelRefused
from tasks.domains import Domain

REVISION = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """Answers what `snapshot_download` asks of a hub for one repository, `ann/tiny`."""

    folder = None
    requests: list[str]

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        type(self).requests.append(path)
        names = sorted(str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file())
        if path == f"/api/models/ann/tiny/revision/{REVISION}":
            info = {
                "id": "ann/tiny",
                "modelId": "ann/tiny",
                "sha": REVISION,
                "siblings": [{"rfilename": n} for n in names],
            }
            return self.reply(json.dumps(info).encode(), body)
        if path == f"/api/models/ann/tiny/tree/{REVISION}":
            tree = [
                {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0" * 40} for n in names
            ]
            return self.reply(json.dumps(tree).encode(), body)
        name = path.removeprefix(f"/ann/tiny/resolve/{REVISION}/")
        if name in names:
            return self.reply((self.folder / name).read_bytes(), body)
        return self.reply(b"", body, 404)

    def reply(self, content, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        """Silent."""


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    handler = type("Handler", (FakeHub,), {"folder": tiny, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield handler
    server.shutdown()
    server.server_close()


def run(strategy, tmp_path):
    model = tmp_path / "model"
    stage.base(strategy, model=model, work=tmp_path, seed=0, domain=Domain())
    return model


def test_safetensors_configs_and_tokenizer_are_fetched_and_pointed_to(hub, tiny, tmp_path):
    (tiny / "pytorch_model.bin").write_bytes(b"pickle")
    (tiny / "modeling_tiny.py").write_text("raise SystemExit")
    (tiny / "onnx").mkdir()
    (tiny / "onnx" / "config.json").write_text("{}")
    model = run(Hub(repo="ann/tiny", revision=REVISION), tmp_path)
    pointer = json.loads((model / "pointer.json").read_text())
    assert set(pointer["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert models.resolve(model).name == REVISION
    assert models.digest(model) == models.digest(tiny)
    fetched = " ".join(path for path in hub.requests if "/resolve/" in path)
    assert "model.safetensors" in fetched
    assert not any(part in fetched for part in (".bin", ".py", "onnx"))


def test_a_repository_that_wants_to_run_code_is_refused(hub, tiny, tmp_path):
    (tiny / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    with pytest.raises(ModelRefused, match="auto_map"):
        run(Hub(repo="ann/tiny", revision=REVISION), tmp_path)


def test_an_unknown_repository_is_one_clear_error(hub, tmp_path):
    with pytest.raises(FlywheelError, match=r"ann/huge at 0123"):
        run(Hub(repo="ann/huge", revision=REVISION), tmp_path)


def test_offline_is_one_clear_error_and_what_is_cached_still_works(hub, tmp_path, monkeypatch):
    first = models.digest(run(Hub(repo="ann/tiny", revision=REVISION), tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert models.digest(run(Hub(repo="ann/tiny", revision=REVISION), tmp_path)) == first
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(FlywheelError, match="ann/tiny") as caught:
        run(Hub(repo="ann/tiny", revision=REVISION), tmp_path)
    assert "\n" not in str(caught.value)


def test_it_is_found_on_a_machine_whose_cache_lies_elsewhere(hub, tiny, tmp_path, monkeypatch):
    model = run(Hub(repo="ann/tiny", revision=REVISION), tmp_path / "data" / "round=qwen")
    assert str(tmp_path) not in (model / "pointer.json").read_text()
    shutil.move(tmp_path / "hub", tmp_path / "other")
    untrained = shutil.copytree(model, tmp_path / "data/round=r1/model")
    with pytest.raises(ModelRefused, match=r"ann/tiny at 0123.*`flywheel stage base NAME`, the base"):
        models.check(untrained)
    for made in ("qwen/manifests/base.json", "r1/manifests/train.json"):
        place = tmp_path / f"data/round={made}"
        place.parent.mkdir()
        place.touch()
    with pytest.raises(ModelRefused, match=r"round=r1/model.*`flywheel stage base qwen`"):
        models.check(untrained)
    with pytest.raises(ModelRefused, match=r"ann/tiny at 0123.*`flywheel stage base qwen`"):
        models.resolve(model)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    count = len(hub.requests)
    assert models.resolve(model).is_relative_to(tmp_path / "other")
    assert models.digest(model) == models.digest(tiny)
    assert len(hub.requests) == count  # looking is not asking the hub
    (models.resolve(model) / "tokenizer.json").unlink()
    with pytest.raises(ModelRefused, match="ann/tiny"):
        models.resolve(model)


@pytest.mark.parametrize(
    "wrong", [{"revision": "main"}, {"revision": REVISION[:12]}, {"repo": "../../etc"}, {"repo": ""}]
)
def test_a_branch_or_a_path_is_refused(wrong):
    with pytest.raises(ValidationError):
        Hub(**{"repo": "ann/tiny", "revision": REVISION} | wrong)
