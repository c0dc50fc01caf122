"""Objects by name in a local folder or in a bucket that speaks S3: receipts, commits, and parts that are named by content.

    place("data/cache/pieces")            a folder; names are paths below it
    place("s3://bucket/prefix")           a bucket; names are keys below the prefix

`put_once` creates an object or says that there is one already, whoever made it, so of several processes or machines exactly one
wins. In a folder that is a hard link to a file that was written and synced beside it; in a bucket a put with
`If-None-Match: *`. An object is there with all its bytes or not at all, in both. `put_file` may be repeated: it is for objects
that are named by their content.

Correctness never rests on `names`, for the listing of a bucket may lag behind its puts and deletes: what has to be found is
read by its name.

Credentials come from the environment alone (`AWS_ACCESS_KEY_ID` …, or what it names: a web identity, a container's role), no
file of the project or of the user holds them; `AWS_ENDPOINT_URL` is the address of a store that is not Amazon's.
"""

import hashlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from tasks.core.errors import FlywheelError, StoreError, masked

T = TypeVar("T")
SCHEME = "s3://"
TRIES, PAUSE = 6, 0.1
"""Attempts at a request that failed for a while, and seconds before the second one; each pause doubles."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed."""
CHUNK = 2**26
"""Bytes that are read at once, and the size of a piece of a large object; a bucket takes 10,000 of them."""
PROVIDERS = {"env", "assume-role-with-web-identity", "container-role"}
"""Sources of credentials, by botocore's names: the environment, and what it names."""
ENDPOINT, REGION = "AWS_ENDPOINT_URL", "us-east-1"


class Absent(StoreError):
    """There is no object of this name."""


class Unreachable(StoreError):
    """The store does not answer, or not now."""

    exit_code = 75


@dataclass(frozen=True)
class Entry:
    """An object: its name, size in bytes, seconds since 1970 when it was written, and a text that changes with its bytes."""

    name: str
    bytes: int
    modified: float
    tag: str


class Place(ABC):
    """A folder or bucket of objects."""

    url: str

    @abstractmethod
    def put_once(self, name: str, data: bytes) -> bool:
        """Creates an object, with all its bytes; False where it is there already, and it stays as it is."""

    @abstractmethod
    def put_file(self, name: str, path: Path) -> None:
        """Writes a file as an object, in place of one that is there."""

    @abstractmethod
    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes of an object, or of a range of it.

        Raises:
            Absent: when there is none of this name.
        """

    @abstractmethod
    def entry(self, name: str) -> Entry | None:
        """An object without its bytes; None where there is none."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose name begins with `prefix`, ordered by name. New ones may be missing, deleted ones may be among them."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Deletes an object; one that is not there is no error."""

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, in order; see `entries`."""
        return [entry.name for entry in self.entries(prefix)]

    def address(self, name: str) -> str:
        """The path or URL of an object."""
        return f"{self.url}/{name}"

    def sha256(self, name: str) -> str:
        """The sha256 of an object's bytes, which are read a chunk at a time."""
        entry = self.entry(name)
        if entry is None:
            raise Absent(f"{self.address(name)} is missing")
        hashed = hashlib.sha256()
        for start in range(0, entry.bytes, CHUNK):
            hashed.update(self.read(name, start, min(start + CHUNK, entry.bytes)))
        return hashed.hexdigest()


def place(where: str | Path) -> Place:
    """The folder or bucket at a path or URL; nothing is read or made yet.

    Raises:
        StoreError: for a URL that is no bucket's, or holds credentials.
    """
    text = str(where)
    if "://" not in text:
        return _Folder(Path(where))
    try:
        parts = urlsplit(text)
        plain = parts.scheme == "s3" and parts.hostname == parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        plain = False
    if not plain:
        raise StoreError(
            f"{masked(text)} is no place for objects; write s3://bucket/prefix or a folder. Credentials come from the "
            f"environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), the server's address from {ENDPOINT}"
        )
    return _Bucket(parts.netloc, parts.path.strip("/"))


def _checked(name: str) -> str:
    if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} is no name of an object")
    return name


class _Folder(Place):
    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder)

    def put_once(self, name: str, data: bytes) -> bool:
        return self._write(name, lambda new: new.write(data), once=True)

    def put_file(self, name: str, path: Path) -> None:
        def copy(new: BinaryIO) -> None:
            with path.open("rb") as source:
                while chunk := source.read(CHUNK):
                    new.write(chunk)

        self._write(name, copy, once=False)

    def _write(self, name: str, fill: Callable[[BinaryIO], Any], once: bool) -> bool:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.parent / f".{uuid.uuid4().hex}"
        try:
            with new.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if once:
                os.link(new, path)
            else:
                new.replace(path)
        except FileExistsError:
            return False
        finally:
            new.unlink(missing_ok=True)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        return True

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        try:
            with self._path(name).open("rb") as file:
                file.seek(start)
                return file.read(-1 if end is None else end - start)
        except (FileNotFoundError, NotADirectoryError):
            raise Absent(f"{self.address(name)} is missing") from None

    def entry(self, name: str) -> Entry | None:
        path = self._path(name)
        with suppress(FileNotFoundError, NotADirectoryError):
            stat = path.stat()
            return Entry(name, stat.st_size, stat.st_mtime, f"{stat.st_mtime_ns}-{stat.st_ino}")
        return None

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        names = (
            (Path(folder) / file).relative_to(self.folder).as_posix()
            for folder, _, files in os.walk(self.folder / prefix.rpartition("/")[0])
            for file in files
            if not file.startswith(".")  # one that is being written
        )
        found = (self.entry(name) for name in sorted(names) if name.startswith(prefix))
        yield from (entry for entry in found if entry)

    def delete(self, name: str) -> None:
        with suppress(NotADirectoryError):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / _checked(name)


class _Bucket(Place):
    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.url = f"{SCHEME}{bucket}/{prefix}".rstrip("/")

    def put_once(self, name: str, data: bytes) -> bool:
        unsure = False  # an attempt without an answer may have made it
        for last in _attempts():
            try:
                self._call("put_object", name, Body=data, IfNoneMatch="*")
            except _Refused as error:
                if error.status == 412:
                    return unsure and self.read(name) == data
                if error.status == 501:
                    raise StoreError(f"{self.url}: the store does not know If-None-Match; `flywheel doctor`") from error
                if error.status not in TRANSIENT | {409}:  # 409: another put of this name is under way
                    raise
                unsure = unsure or error.status != 409
                if last:
                    raise Unreachable(f"{self.address(name)} cannot be written now: {error}") from error
            except Unreachable:
                unsure = True
                if last:
                    raise
            else:
                return True
        raise AssertionError

    def put_file(self, name: str, path: Path) -> None:
        if path.stat().st_size > CHUNK:
            self._put_in_pieces(name, path)
        else:
            self._retried("put_object", name, Body=path.read_bytes())

    def _put_in_pieces(self, name: str, path: Path) -> None:
        upload = self._retried("create_multipart_upload", name)["UploadId"]
        try:
            with path.open("rb") as file:
                pieces = []
                for number, chunk in enumerate(iter(lambda: file.read(CHUNK), b""), start=1):
                    made = self._retried("upload_part", name, UploadId=upload, PartNumber=number, Body=chunk)
                    pieces.append({"PartNumber": number, "ETag": made["ETag"]})
            try:
                self._retried("complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": pieces})
            except Absent:  # the upload is gone: an attempt whose answer was lost completed it
                made = self.entry(name)
                if made is None or made.bytes != path.stat().st_size:
                    raise
        except BaseException:
            with suppress(FlywheelError):
                self._call("abort_multipart_upload", name, UploadId=upload)
            raise

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            return b""
        part = {} if (start, end) == (0, None) else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        try:
            return self._retried("get_object", name, **part)
        except _Refused as error:
            if error.status == 416:  # the range begins where the object ends
                return b""
            raise

    def entry(self, name: str) -> Entry | None:
        try:
            head = self._retried("head_object", name)
        except Absent:
            return None
        return Entry(name, head["ContentLength"], head["LastModified"].timestamp(), head["ETag"])

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        token: dict[str, str] = {}
        while True:
            page = self._retried("list_objects_v2", None, Prefix=self.prefix + prefix, **token)
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(self.prefix)
                yield Entry(name, item["Size"], item["LastModified"].timestamp(), item["ETag"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, name: str) -> None:
        with suppress(Absent):
            self._retried("delete_object", name)

    def _retried(self, operation: str, name: str | None, **arguments: Any) -> Any:
        for last in _attempts():
            try:
                return self._call(operation, name, **arguments)
            except _Refused as error:
                if error.status not in TRANSIENT | {409}:
                    raise
                if last:
                    raise Unreachable(str(error)) from error
            except Unreachable:
                if last:
                    raise
        raise AssertionError

    def _call(self, operation: str, name: str | None, **arguments: Any) -> Any:
        """One request; what `get_object` answers is read to its end."""
        key = {} if name is None else {"Key": self.prefix + _checked(name)}
        with _errors(self.url if name is None else self.address(name)):
            answer = getattr(_client(os.getpid()), operation)(Bucket=self.bucket, **key, **arguments)
            return answer["Body"].read() if operation == "get_object" else answer


class _Refused(StoreError):
    """A request that the store answered with an error."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@contextmanager
def _errors(address: str) -> Iterator[None]:
    """Says in one message what botocore raises."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        status, code = int(error.response["ResponseMetadata"]["HTTPStatusCode"]), error.response["Error"]["Code"]
        if code == "NoSuchBucket":
            raise StoreError(f"{address}: there is no such bucket; make it, or correct DATA_URL or data:") from error
        if status == 404:
            raise Absent(f"{address} is missing") from None
        hint = "; may these credentials read and write there?" if status in (401, 403) else ""
        raise _Refused(f"{address}: the store answers {status} ({code}){hint}", status) from error
    except NoCredentialsError as error:
        raise StoreError(f"{address}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
        server = masked(os.environ.get(ENDPOINT, "Amazon S3"))
        raise Unreachable(f"{address}: {server} does not answer ({type(error).__name__}); try again later") from error
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"{address}: {masked(str(error))}") from error


def _attempts() -> Iterator[bool]:
    """Yields for each attempt whether it is the last; waits between them."""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        yield number == TRIES - 1


@lru_cache(maxsize=1)
def _client(pid: int) -> Any:
    """The client of this process: connections do not survive a fork."""
    from botocore.config import Config
    from botocore.handlers import add_expect_header

    retries = {"total_max_attempts": 1}  # `put_once` has to know of each attempt
    config = Config(retries=retries, connect_timeout=5, read_timeout=60, max_pool_connections=32)
    client = _session().create_client("s3", region_name=region(), config=config)
    # small objects are sent at once, and not after the store was asked for leave to send them
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def _session() -> Any:
    from botocore.session import Session

    session = Session()
    for variable in ("config_file", "credentials_file"):
        session.set_config_variable(variable, os.devnull)
    session.set_config_variable("profile", None)
    providers = session.get_component("credential_provider")
    for provider in list(providers.providers):
        if provider.METHOD not in PROVIDERS:
            providers.remove(provider.METHOD)
    return session


def region() -> str:
    """The region that the environment names, which a store of one's own ignores."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or REGION


def options() -> dict[str, str]:
    """What polars wants to know of the store, from the environment as well.

    Raises:
        StoreError: without credentials.
    """
    found = _session().get_credentials()
    if found is None:
        raise StoreError("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    keys = found.get_frozen_credentials()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(ENDPOINT)
    return {
        "aws_access_key_id": keys.access_key,
        "aws_secret_access_key": keys.secret_key,
        "aws_region": region(),
        **({"aws_session_token": keys.token} if keys.token else {}),
        **({"aws_endpoint_url": endpoint, "aws_allow_http": "true"} if endpoint else {}),
    }
