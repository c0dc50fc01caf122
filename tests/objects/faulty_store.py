"""moto's S3 over HTTP on a port of this machine, and what can go wrong with a store: each is switched on by a field.

moto looks whether an object is there and writes it then, so requests that change something take turns here, as in a real store.
"""

import re
import socket
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
KEY = re.compile(rb"<Key>(.*?)</Key>")
Fault = Callable[[dict[str, Any]], str | None]


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, *_: Any) -> None:
        pass


class FaultyStore:
    """A server, and its faults."""

    def __init__(self) -> None:
        self.ignores_conditions = False
        self.fault: Fault | None = None
        """Of a request that changes something: `cut` (the connection breaks while it is sent), `lost` (it is done and the answer is
        lost), a status that is answered instead (`503`, `409`), or None.
        """
        self.seen: list[tuple[str, str]] = []
        """Method and path of each request."""
        self._listing: list[bytes] | None = None
        self._moto, self._turns = DomainDispatcherApplication(create_backend_app), Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def well(self) -> None:
        """Switches all faults off."""
        self.ignores_conditions, self.fault, self._listing = False, None, None
        self.seen.clear()

    def let_listings_lag(self, client: Any, bucket: str) -> None:
        """Listings say from now on what there is now."""
        keys = {entry["Key"].encode() for entry in client.list_objects_v2(Bucket=bucket).get("Contents", ())}
        self._listing = []
        for key in sorted(keys):
            entry = client.head_object(Bucket=bucket, Key=key.decode())
            time = entry["LastModified"].strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()
            size, tag = str(entry["ContentLength"]).encode(), entry["ETag"].encode()
            self._listing.append(
                b"<Contents><Key>" + key + b"</Key><LastModified>" + time + b"</LastModified><ETag>" + tag
                + b"</ETag><Size>" + size + b"</Size></Contents>"
            )  # fmt: skip

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append((method, path))
        if method == "GET" and "list-type=2" in environ.get("QUERY_STRING", "") and self._listing is not None:
            return self._listed(environ, start_response)
        if method in ("GET", "HEAD"):
            return self._moto(environ, start_response)
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        kind = self.fault(environ) if self.fault else None
        if kind == "cut":
            with suppress(OSError):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            return self._break(environ)
        if kind not in (None, "lost"):
            start_response(f"{kind} Fault", [("Content-Type", "application/xml")])
            return [f"<Error><Code>Fault{kind}</Code><Message>a fault</Message></Error>".encode()]
        with self._turns:
            answer = list(self._moto(environ, start_response))
        return self._break(environ) if kind == "lost" else answer

    def _break(self, environ: dict[str, Any]) -> Iterable[bytes]:
        with suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def _listed(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = b"".join(self._moto(environ, start_response))
        prefix = re.search(rb"<Prefix>(.*?)</Prefix>", body)
        wanted = prefix[1] if prefix else b""
        kept = [e for e in self._listing or () if KEY.search(e)[1].startswith(wanted)]
        plain = CONTENTS.sub(b"", body)
        return [plain.replace(b"</ListBucketResult>", b"".join(kept) + b"</ListBucketResult>")]


def puts(kind: str, what: str = "", times: int = 1) -> Fault:
    """The fault `kind` of the first `times` puts whose path holds `what`."""
    left = [times]

    def fault(environ: dict[str, Any]) -> str | None:
        if environ["REQUEST_METHOD"] != "PUT" or what not in environ["PATH_INFO"] or not left[0]:
            return None
        left[0] -= 1
        return kind

    return fault


def new_bucket(client) -> str:
    """The URL of a prefix in a new bucket."""
    name = f"flywheel-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return f"s3://{name}/data"
