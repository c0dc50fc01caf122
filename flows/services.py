"""The local services that a person looks at: Prefect server and worker, MLflow UI; on loopback, each in a group of its own.

    .flywheel/services.json    who was started: pid and start time, so that `down` ends these processes and no others
    .flywheel/prefect.db       Prefect's database: flow runs, task runs, artifacts
    .flywheel/logs/            what the services print

Ports are Prefect's and MLflow's own settings: PREFECT_SERVER_API_PORT (4200) and MLFLOW_PORT (5000).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil

from tasks.errors import FlywheelError
from tasks.record import prepare, tracking_uri

POOL = "flywheel"
HOST = "127.0.0.1"
PATIENCE = 120.0
"""Seconds until a service that does not answer counts as broken."""
GRACE = 10.0
"""Seconds between asking a service to end and killing it."""


@dataclass(frozen=True)
class Service:
    """A service that can be started: what to run, and how to see that it is there."""

    name: str
    command: list[str]
    healthy: Callable[[], bool]
    url: str = ""
    port: int | None = None
    setting: str = ""
    """The variable that moves it to another port."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A service that was started: enough to know it again, since pids are used anew."""

    pid: int
    created: float
    url: str

    @property
    def process(self) -> psutil.Process | None:
        """The process, if it is still the one that was started."""
        try:
            process = psutil.Process(self.pid)
            alive = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


# What there is to start


def prefect_server(root: Path) -> Service:
    """Prefect's server with its UI, and its database under the project."""
    port = _port("PREFECT_SERVER_API_PORT", 4200)
    url = f"http://{HOST}:{port}"
    env = {
        "PREFECT_HOME": str(home(root) / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database(root),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "NOTSET",
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        HOST,
        "--port",
        str(port),
        "--analytics-off",
    ]
    return Service("prefect server", command, lambda: answers(f"{url}/api"), url, port, "PREFECT_SERVER_API_PORT", env)


def worker(root: Path, api: str) -> Service:
    """A worker that runs deployed flows as processes of this machine."""
    env = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home(root) / "prefect"),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "NOTSET",
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL]
    return Service("prefect worker", command, lambda: _polls(api), env=env)


def mlflow_ui(root: Path) -> Service | None:
    """MLflow's UI over the store that `flywheel record` writes to; None where that is a server, which has its own."""
    store = tracking_uri(root)
    if "://" in store and store.split(":")[0] in ("http", "https", "databricks"):
        return None
    port = _port("MLFLOW_PORT", 5000)
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", store, "--workers", "1"]
    # Its job runners would be eight more processes, for features that nobody uses here.
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return Service("mlflow", command, lambda: _responds(f"{url}/health"), url, port, "MLFLOW_PORT", env)


def home(root: Path) -> Path:
    """The folder of the project's services."""
    return root.resolve() / ".flywheel"


def database(root: Path) -> str:
    """Where Prefect keeps its history, as SQLAlchemy names it."""
    home(root).mkdir(exist_ok=True)
    return f"sqlite+aiosqlite:///{home(root) / 'prefect.db'}"


def _port(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise FlywheelError(f"{variable}={value}: must be a port, a whole number from 1 to 65535")
    return int(value)


# Is it there?


def answers(api: str) -> bool:
    """Whether a Prefect server answers at an API URL."""
    return _responds(f"{api.rstrip('/')}/health")


def _responds(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False


def _polls(api: str) -> bool:
    found = httpx.post(f"{api}/work_pools/{POOL}/workers/filter", json={}, timeout=3, trust_env=False)
    return found.is_success and any(w["status"] == "ONLINE" for w in found.json())


def running(root: Path) -> dict[str, Started]:
    """The services of this project that were started and are still alive."""
    path = home(root) / "services.json"
    try:
        started = {name: Started(**values) for name, values in json.loads(path.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError):
        return {}
    return {name: s for name, s in started.items() if s.process}


def running_server(root: Path) -> str | None:
    """The API URL of this project's Prefect server, if it is up."""
    started = running(root).get("prefect server")
    return f"{started.url}/api" if started and answers(f"{started.url}/api") else None


# Start and end


def up(root: Path) -> None:
    """Starts what is not running yet: Prefect server, deployments, worker, MLflow UI; waits for each, prints where it is.

    Raises:
        FlywheelError: for a busy port, and for a service that does not come up (with the end of its log).
    """
    there = running(root)
    server = prefect_server(root)
    first = [s for s in (server, mlflow_ui(root)) if s and s.name not in there]
    for service in first:
        _check_port(service)
    prepare(root)
    for service in first:
        _launch(root, service)
    for service in first:
        _wait(root, service)
    api = f"{running(root)[server.name].url}/api"
    if "prefect worker" not in there:
        _deploy(root, api)
        _start(root, worker(root, api))
    for name, started in running(root).items():
        print(f"{name:<16}{started.url or f'polls the pool {POOL!r}'}")
    print("`flywheel down` ends them; their logs are in .flywheel/logs")


def down(root: Path) -> None:
    """Ends exactly what `up` started; does nothing when that has ended already."""
    there = running(root)
    _end(*there.values())
    _forget(root, *there)
    print(f"ended: {', '.join(there)}" if there else "nothing is running that `flywheel up` started")


@contextmanager
def server(root: Path) -> Iterator[str]:
    """The API URL of a Prefect server, for as long as the block lasts: one that runs already, or one started for it.

    Every flow of the block uses it: it is set as PREFECT_API_URL.

    Raises:
        FlywheelError: for a busy port, and for a server that does not come up.
    """
    configured = os.environ.get("PREFECT_API_URL")
    found = configured if configured and answers(configured) else running_server(root)
    with nullcontext(found) if found else _own_server(root) as url, _environment("PREFECT_API_URL", url):
        yield url


@contextmanager
def _own_server(root: Path) -> Iterator[str]:
    service = prefect_server(root)
    _check_port(service)
    try:
        _start(root, service)
        yield f"{service.url}/api"
    finally:
        _stop(root, service)


@contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable) if before is None else os.environ.update({variable: before})


def _start(root: Path, service: Service) -> None:
    _launch(root, service)
    _wait(root, service)


def _launch(root: Path, service: Service) -> None:
    logs = home(root) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"DO_NOT_TRACK": "1"} | service.env
    environment = {k: v for k, v in environment.items() if v and (k != "PREFECT_API_URL" or k in service.env)}
    with _log(root, service).open("w") as log:
        process = subprocess.Popen(
            service.command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _remember(root, service.name, Started(process.pid, psutil.Process(process.pid).create_time(), service.url))


def _log(root: Path, service: Service) -> Path:
    return home(root) / "logs" / f"{service.name.replace(' ', '-')}.log"


def _wait(root: Path, service: Service) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and service.name in running(root):
        if service.healthy():
            return
        time.sleep(0.2)
    log = _log(root, service).read_text().strip().splitlines()[-15:]
    _stop(root, service)
    raise FlywheelError(f"{service.name} did not come up; the end of its log:\n" + "\n".join(log))


def _stop(root: Path, service: Service) -> None:
    _end(*(s for name, s in running(root).items() if name == service.name))
    _forget(root, service.name)


def _end(*services: Started) -> None:
    """Ends services with their whole process groups, where they still are what was started."""
    alive = [process for s in services if (process := s.process)]
    whole = [p for process in alive for p in (process, *process.children(recursive=True))]
    for process in alive:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(whole, timeout=GRACE)
    for straggler in left:
        with suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(left, timeout=GRACE)


def _remember(root: Path, name: str, started: Started) -> None:
    _write(root, running(root) | {name: started})


def _forget(root: Path, *names: str) -> None:
    if (home(root) / "services.json").exists():
        _write(root, {n: s for n, s in running(root).items() if n not in names})


def _write(root: Path, services: dict[str, Started]) -> None:
    path = home(root) / "services.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps({n: asdict(s) for n, s in services.items()}, indent=1))
    new.replace(path)


def _check_port(service: Service) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, service.port))
        except OSError as error:
            hint = f"set {service.setting} to a free port"
            if service.name == "prefect server" and answers(f"{service.url}/api"):
                hint = f"it is a Prefect server: set PREFECT_API_URL={service.url}/api to use it, or {hint} for another one"
            raise FlywheelError(
                f"{service.name}: port {service.port} is taken{_holder(service.port)}; {hint}"
            ) from error


def _holder(port: int | None) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        pids = [c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
        process = psutil.Process(next(p for p in pids if p))
        return f" by process {process.pid} ({' '.join(process.cmdline())[:80]})"
    except (psutil.Error, StopIteration):
        return ""


def _deploy(root: Path, api: str) -> None:
    environment = os.environ | {"PREFECT_API_URL": api}
    done = subprocess.run(
        [sys.executable, "-m", "flows.deploy"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FlywheelError(f"the flows could not be deployed to {api}:\n{done.stderr.strip()[-2000:]}")
