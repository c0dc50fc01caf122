"""A vLLM that stays up: its record, the process that is it, and what asks it.

`flywheel serve r1` keeps vLLM's OpenAI server up for the weights that the round's stages ask. Its record lies beside the
request cache, `data/cache/served/r1.json`: model folder, address, versions, the parameters on which answers depend, and the
process that keeps it. A record whose process is gone counts for nothing.

The server has the weights under their digest as their name. It is asked OpenAI's completions with the token ids that the engine
in this process would be given, so answers and cache keys are the same.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core import models
from tasks.core.devices import holds_any, shared
from tasks.core.errors import EngineError, ModelRefused
from tasks.engines._vllm_core import Call, Gone, Output

if TYPE_CHECKING:
    from tasks.engines.vllm import Vllm

HOST = "127.0.0.1"
DECIDING = ("dtype", "context", "eager", "tensor_parallel")
"""Parameters of an engine on which its answers depend."""
IN_FLIGHT = 512
"""Requests in flight for each copy of the model whose `max_num_seqs` is vLLM's own choice."""
START = 1800.0
"""Seconds in which a server must have loaded its model."""
GRACE = 15.0
"""Seconds between the request to end and the end of a server that does not."""
SLACK = 2.0
"""Seconds by which two readings of a process's start time may differ."""
SILENCES = 10
"""Times `patience` without any answer after which a server counts as hung that says it is healthy."""
LAST_LINES = 15


def place(cache: Path) -> Path:
    """The folder of records, beside that of the request cache. A worker that keeps a journal has none, and the project as its
    working directory.
    """
    return (cache.parent if cache.parent.name else Path("data/cache")) / "served"


@dataclass(frozen=True)
class Record:
    """A server, as its file has it."""

    round: str
    """The round whose stages ask it."""
    folder: str
    """The model's folder, as stages open it."""
    pid: int
    """Of the process that keeps it."""
    created: float
    """When that process began, for pids are used again."""
    host: str = field(default_factory=socket.gethostname)
    """Its machine: others cannot reach the server."""
    url: str = ""
    """Empty while it starts."""
    digest: str = ""
    engine: dict[str, Any] = field(default_factory=dict)
    """The parameters in `DECIDING`."""
    versions: tuple[str, str] = ("", "")
    dtype: str = ""
    context: int = 0
    gpus: tuple[str, ...] = ()

    @property
    def lives(self) -> bool:
        """Whether the process that keeps it still does, on this machine."""
        import psutil

        if self.host != socket.gethostname():
            return False
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < SLACK and process.status() != psutil.STATUS_ZOMBIE
        return False

    def write(self, folder: Path) -> None:
        """Writes it, in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{self.round}.new"
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        new.replace(folder / f"{self.round}.json")

    def remove(self, folder: Path) -> None:
        """Removes its file."""
        (folder / f"{self.round}.json").unlink(missing_ok=True)


def records(folder: Path) -> list[Record]:
    """The records of servers that are kept."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError):  # it is just being removed, or is none
            content = json.loads(path.read_text())
            found.append(Record(**content | {k: tuple(content[k]) for k in ("versions", "gpus")}))
    return [record for record in found if record.lives]


def find(folder: Path, engine: "Vllm", model: Path, digest: str) -> "Server | None":
    """The server of these weights, once it has started; None where there is none.

    Raises:
        ModelRefused: where the one for this model folder has other weights, or other parameters decide its answers.
    """
    for record in records(folder):
        if record.digest != digest and not _is_same(record.folder, model):
            continue
        ready = _when_ready(folder, record)
        if ready is None:
            continue
        restart = f"`flywheel serve --stop {record.round}` ends it, `flywheel serve {record.round}` starts it anew"
        if ready.digest != digest:
            raise ModelRefused(
                f"the server of {record.round} has the weights {ready.digest[:12]}… of {record.folder}, in which are now "
                f"{digest[:12]}…; {restart}"
            )
        own = deciding(engine)
        if other := [key for key in DECIDING if ready.engine.get(key) != own[key]]:
            raise ModelRefused(
                f"the server of {record.round} was started with "
                + ", ".join(f"engine.{key} {ready.engine.get(key)!r}, not {own[key]!r}" for key in other)
                + f"; {restart}"
            )
        try:
            return Server(engine, models.resolve(model), ready)
        except Gone as gone:
            raise EngineError(f"the server of {record.round} does not answer: {gone}; {restart}") from gone
    return None


def deciding(engine: "Vllm") -> dict[str, Any]:
    """The parameters of an engine on which its answers depend."""
    return engine.model_dump(mode="json", include=set(DECIDING))


def _is_same(folder: str, model: Path) -> bool:
    return Path(folder).absolute() == model.absolute()


def _when_ready(folder: Path, record: Record) -> Record | None:
    """The record once its server has started; None when it ends before that, and for a process that has a GPU: the server may be
    waiting for that one.
    """
    told = False
    while not record.url:
        if holds_any():
            return None
        if not told:
            print(f"waiting for the server of {record.round} to start (flywheel serve)", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.2)
        again = [r for r in records(folder) if (r.round, r.pid) == (record.round, record.pid)]
        if not again:
            return None
        record = again[0]
    return record


class Server:
    """A server that answers as an engine in this process would."""

    def __init__(
        self, engine: "Vllm", folder: Path, record: Record, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.engine, self.folder, self.record, self._process = engine, folder, record, process
        self.versions, self.context, self.dtype = record.versions, record.context, record.dtype
        self._check()

    @property
    def lives(self) -> bool:
        """Whether the process of one that was started here lives."""
        return self._process is None or self._process.poll() is None

    @property
    def tokenizer(self) -> Any:
        """The model's, from its folder."""
        from transformers import AutoTokenizer

        _, vocabulary = models.layout(self.folder)
        return AutoTokenizer.from_pretrained(vocabulary, local_files_only=True, trust_remote_code=False)

    @contextmanager
    def used(self, folder: Path) -> Iterator[None]:
        """While a process asks it, which the server's keeper can see; its GPUs count as held."""
        mark = folder / f"{self.record.round}.{os.getpid()}.user"
        mark.touch()
        try:
            with shared(self.record.gpus):
                yield
        finally:
            mark.unlink(missing_ok=True)

    def restart(self) -> None:
        """Raises EngineError: a server is another process's to start."""
        raise EngineError(
            f"the server of {self.record.round} at {self.record.url} is gone; what was answered is kept: run the stage again"
        )

    def answers(self, calls: Mapping[str, Call]) -> Iterator[tuple[str, Output | ValueError]]:
        """Outputs by request, as they come; a ValueError for a request that the server refuses.

        Raises:
            Gone: when the server does not answer.
            ModelRefused: when it has other weights.
        """
        from anyio.from_thread import start_blocking_portal

        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with start_blocking_portal() as portal:
            task = portal.start_task_soon(self._send, calls, results)
            try:
                while (item := self._next(results)) is not None:
                    yield item
            finally:
                task.cancel()

    def _next(self, results: "queue.SimpleQueue[Any]") -> Any:
        for _ in range(SILENCES):
            with suppress(queue.Empty):
                item = results.get(timeout=self.engine.patience)
                if isinstance(item, Exception):
                    raise item
                return item
            self._check()
        raise Gone(f"gave no answer for {SILENCES * self.engine.patience:g} s")

    def _check(self) -> None:
        """Raises Gone where no server answers, ModelRefused where it has other weights."""
        import httpx

        try:
            reply = httpx.get(f"{self.record.url}/models", timeout=30, trust_env=False)
            names = [model["id"] for model in reply.json()["data"]]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise Gone(f"{self.record.url}: {type(error).__name__}: {error}") from None
        if self.record.digest not in names:
            raise self._refused(", ".join(map(str, names))[:100])

    def _refused(self, names: str) -> ModelRefused:
        return ModelRefused(
            f"{self.record.url}: does not have the weights {self.record.digest[:12]}…, but {names or 'none'}; "
            f"`flywheel serve --stop {self.record.round}` ends it"
        )

    async def _send(self, calls: Mapping[str, Call], results: "queue.SimpleQueue[Any]") -> None:
        """Puts every output as it comes; in the end None, after an error that ends it all."""
        import asyncio

        import httpx

        todo, copies = iter(calls.items()), self.engine.data_parallel_size
        count = min(len(calls), copies * (self.engine.max_num_seqs or IN_FLIGHT))

        async def work(client: httpx.AsyncClient) -> None:
            for name, call in todo:
                results.put((name, await self._ask(client, call)))

        try:
            limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
            timeout = httpx.Timeout(None, connect=30)
            async with (
                httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client,
                asyncio.TaskGroup() as workers,
            ):
                for _ in range(count):
                    workers.create_task(work(client))
        except Exception as error:  # whatever it was, the reader raises it
            results.put(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
        finally:
            results.put(None)

    async def _ask(self, client: Any, call: Call) -> Output | ValueError:
        import httpx

        try:
            reply = await client.post(
                f"{self.record.url}/completions", content=json.dumps(self._body(call)), headers=JSON
            )
        except httpx.HTTPError as error:
            raise Gone(f"{self.record.url}: {type(error).__name__}: {error}") from None
        if reply.status_code == httpx.codes.NOT_FOUND:
            raise self._refused("another model")
        if reply.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Gone(f"{self.record.url}: HTTP {reply.status_code}: {reply.text[:200]}")
        if reply.status_code != httpx.codes.OK:
            return ValueError(reply.text[:200])
        try:
            return _output(reply.json(), call)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Gone(f"{self.record.url}: its reply cannot be read: {type(error).__name__}: {error}") from None

    def _body(self, call: Call) -> dict[str, Any]:
        """A request for a completion. What is left out would be taken from the model's generation config."""
        given = {name: value for name, value in call.params.items() if value is not None}
        return {"model": self.record.digest, "prompt": call.ids, "top_k": 0, "repetition_penalty": 1.0, **given}


JSON = {"content-type": "application/json"}


def _output(reply: dict[str, Any], call: Call) -> Output:
    choice = reply["choices"][0]
    if call.scored:
        entries = choice["prompt_logprobs"][-call.scored :]
        scored = zip(entries, call.ids[-call.scored :], strict=True)
        return Output(logprobs=tuple([float(entry[str(token)]["logprob"]) for entry, token in scored]))
    given = choice.get("logprobs")
    logprobs = tuple(map(float, given["token_logprobs"])) if given else ()
    return Output(
        choice["text"], int(reply["usage"]["completion_tokens"]), choice["finish_reason"],
        sum(logprobs) if given else None, logprobs,
    )  # fmt: skip


# The process


@contextmanager
def started(
    engine: "Vllm", folder: Path, digest: str, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Starts vLLM's server on a model folder for the block, and ends it, with all that it started. It ends by itself when
    this process does.

    Raises:
        EngineError: where it does not start, with the end of its log.
    """
    import tempfile

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flywheel-served-")))
        log, facts, port = log or work / "log", work / "facts.json", _free_port()
        wish = {
            "engine": engine.model_dump(mode="json"), "folder": str(folder.absolute()), "digest": digest, "port": port,
            "facts": str(facts),
        }  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tasks.engines._vllm_server", json.dumps(wish)],
                stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True, env=environment,
            )  # fmt: skip
        stack.callback(_end, process)
        _wait(process, facts, log)
        known = json.loads(facts.read_text())
        record = Record(
            "this stage", str(folder), os.getpid(), 0.0, url=f"http://{HOST}:{port}/v1", digest=digest,
            engine=deciding(engine), versions=tuple(known["versions"]), dtype=known["dtype"], context=known["context"],
        )  # fmt: skip
        yield Server(engine, folder, record, process)


def _wait(process: subprocess.Popen[bytes], facts: Path, log: Path) -> None:
    deadline = time.monotonic() + START
    while not facts.is_file():
        if process.poll() is not None or time.monotonic() > deadline:
            last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:])
            raise EngineError(f"engine vllm: its server did not start; the end of its log ({log}):\n{last}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and what it started, which is in its process group, also where it was killed itself."""
    assert process.stdin is not None
    process.stdin.close()  # it ends itself then
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + GRACE
    while group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)


def group(leader: int) -> list[int]:
    """The processes of a process group that have not ended."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def users(folder: Path, name: str) -> int:
    """How many processes ask the server of a round."""
    import psutil

    marks = {path: int(path.name.split(".")[-2]) for path in folder.glob(f"{name}.*.user")}
    for path in [path for path, pid in marks.items() if not psutil.pid_exists(pid)]:
        path.unlink(missing_ok=True)  # it was killed
        del marks[path]
    return len(marks)


def kept(server: Server, record: Record, gpus: tuple[str, ...]) -> Record:
    """A record with what is known of its server, now that it is up."""
    return replace(
        server.record, round=record.round, folder=record.folder, pid=record.pid, created=record.created, gpus=gpus
    )
