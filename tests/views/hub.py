"""A hub in miniature: what `huggingface_hub`'s own client asks of the real one to make a repository and commit to it.

Files up to `LARGE` bytes come within the commit, larger ones by the LFS protocol, as there.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

TOKEN = "hf_fake"
LARGE = 1000


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Their messages."""

    @property
    def card(self) -> dict[str, Any]:
        text = self.files.get("README.md", b"").decode()
        return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}


@dataclass
class Hub:
    """Repositories by kind and id, as `("dataset", "me/rows")`."""

    address: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Contents that came by the LFS protocol, by sha256."""
    refuses: int | None = None
    """A status with which every commit is answered."""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def known(request: Request, call_next):
            if request.headers.get("authorization") != f"Bearer {TOKEN}" and "/lfs/" not in request.url.path:
                return JSONResponse({"error": "Invalid credentials in Authorization header"}, 401)
            return await call_next(request)

        @app.post("/api/repos/create")
        async def create(request: Request):
            asked = await request.json()
            kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
            exists = (kind, name) in self.repositories
            if not exists:
                private = asked.get("private") or asked.get("visibility") == "private"
                self.repositories[kind, name] = Repository(bool(private))
            prefix = "datasets/" if kind == "dataset" else ""
            return JSONResponse({"url": f"{self.address}/{prefix}{name}"}, 409 if exists else 200)

        @app.post("/api/validate-yaml")
        async def validate(request: Request):
            asked = await request.json()
            errors = [] if yaml.safe_load(asked["content"].split("---\n")[1]) else [{"message": "no metadata"}]
            return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

        @app.get("/api/{kinds}/{owner}/{name}")
        async def info(kinds: str, owner: str, name: str):
            repository = self.repositories[kinds.rstrip("s"), f"{owner}/{name}"]
            files = [{"rfilename": f} for f in repository.files]
            about = {
                "id": f"{owner}/{name}",
                "sha": "0" * 40,
                "private": repository.private,
                "cardData": repository.card,
            }
            return about | {"siblings": files, "tags": [], "downloads": 0, "likes": 0}

        @app.get("/api/{kinds}/{owner}/{name}/tree/main")
        async def tree(kinds: str, owner: str, name: str):
            files = self.repositories[kinds.rstrip("s"), f"{owner}/{name}"].files
            return [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]

        @app.post("/api/{kinds}/{owner}/{name}/preupload/main")
        async def preupload(kinds: str, owner: str, name: str, request: Request):
            files = (await request.json())["files"]
            modes = {f["path"]: "lfs" if f["size"] > LARGE else "regular" for f in files}
            return {
                "files": [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in modes.items()]
            }

        @app.post("/{path:path}/info/lfs/objects/batch")
        async def batch(path: str, request: Request):
            objects = (await request.json())["objects"]
            actions = [o | {"actions": {"upload": {"href": f"{self.address}/lfs/{o['oid']}"}}} for o in objects]
            return {"transfer": "basic", "objects": actions}

        @app.put("/lfs/{oid}")
        async def upload(oid: str, request: Request):
            self.large[oid] = await request.body()
            return {}

        @app.post("/api/{kinds}/{owner}/{name}/commit/main")
        async def commit(kinds: str, owner: str, name: str, request: Request):
            if self.refuses:
                return JSONResponse({"error": "not here, not now"}, self.refuses)
            repository = self.repositories[kinds.rstrip("s"), f"{owner}/{name}"]
            for line in (await request.body()).splitlines():
                operation = json.loads(line)
                what, value = operation["key"], operation["value"]
                if what == "header":
                    repository.commits.append(value["summary"])
                elif what == "deletedFile":
                    del repository.files[value["path"]]
                elif what == "lfsFile":
                    content = self.large[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                    repository.files[value["path"]] = content
                else:
                    repository.files[value["path"]] = base64.b64decode(value["content"])
            prefix = "datasets/" if kinds == "datasets" else ""
            return {
                "success": True,
                "commitOid": "c" * 40,
                "commitUrl": f"{self.address}/{prefix}{owner}/{name}/commit/{'c' * 40}",
            }

        return app


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    server = uvicorn.Server(uvicorn.Config(hub.app(), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "the hub did not start"
    hub.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield hub
    server.should_exit = True
    thread.join()
