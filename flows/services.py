"""Local services on loopback: Prefect server and worker, MLflow UI; each in its own process group.

    .flywheel/services.json    pid, start time and command of each service, so that `down` stops these and no others
    .flywheel/prefect.db       Prefect's database: flow runs, task runs, artifacts
    .flywheel/logs/            output of the services

A server that was started for one command is in no file: it ends with that command, also when that is killed, since its
standard input closes then.

Ports are Prefect's and MLflow's own settings: PREFECT_SERVER_API_PORT (4200) and MLFLOW_PORT (5000). A home or database
that is configured for Prefect is used as it is: `postgresql+asyncpg://…` is a team's, and `down` leaves it alone.
"""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows import UNTIL_STDIN_CLOSES
from tasks.core.cache import set_aside
from tasks.core.errors import FlywheelError, masked
from tasks.core.store import DISK_FULL
from tasks.project import databases, strays
from tasks.views.record import prepare, tracking_uri

POOL = "flywheel"
HOST = "127.0.0.1"
LOOPBACK = (HOST, "localhost", "::1")
PATIENCE = 120.0
"""Seconds until a service that does not answer counts as failed."""
GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Service:
    """A service that can be started: its command and its health check."""

    name: str
    command: list[str]
    healthy: Callable[[], bool]
    url: str = ""
    port: int | None = None
    setting: str = ""
    """The environment variable of its port."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A started service: enough to identify its process, since pids are reused."""

    pid: int
    created: float
    command: list[str]
    url: str

    @property
    def process(self) -> psutil.Process | None:
        """Its process, if that is still the one that was started."""
        try:
            process = psutil.Process(self.pid)
            # Right after its start a process has no command line yet.
            same = abs(process.create_time() - self.created) < strays.SLACK and process.cmdline() in ([], self.command)
        except psutil.Error:
            return None
        return process if same else None


# Services


def prefect_server(root: Path, port: int | None = None, bound: bool = False) -> Service:
    """Prefect's server with its UI. Its database is under the project. A bound one ends when its standard input closes."""
    port = port or _port("PREFECT_SERVER_API_PORT", 4200)
    url = f"http://{HOST}:{port}"
    env = prefect_home(root) | database(root) | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "NOTSET"}
    command = [sys.executable, "-m", "flows.server", "start", "--host", HOST, "--port", str(port)]
    command += [UNTIL_STDIN_CLOSES] if bound else []
    return Service("prefect server", command, lambda: answers(f"{url}/api"), url, port, "PREFECT_SERVER_API_PORT", env)


def worker(root: Path, api: str) -> Service:
    """A Prefect worker that runs deployed flows as local processes."""
    env = prefect_home(root) | {"PREFECT_API_URL": api, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "NOTSET"}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", POOL]
    return Service("prefect worker", command, lambda: _polls(api), env=env)


def mlflow_ui(root: Path) -> Service | None:
    """MLflow's UI for the store that `flywheel record` writes to; None where that is a server with its own UI."""
    store = tracking_uri(root)
    if "://" in store and store.split(":")[0] in ("http", "https", "databricks"):
        return None
    port = _port("MLFLOW_PORT", 5000)
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    env = {
        "MLFLOW_BACKEND_STORE_URI": store,  # not an argument: it may hold a password, and every user sees command lines
        # Its job runners would be eight more processes, for unused features.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": "",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # By default it answers to any name that begins with 10., too, to which another site may give this machine's address.
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{host}{port}" for host in LOOPBACK[:2] for port in ("", ":*")),
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
    }
    return Service(
        "mlflow", command, lambda: _request("GET", f"{url}/health") is not None, url, port, "MLFLOW_PORT", env
    )


def home(root: Path) -> Path:
    """The folder of the project's services."""
    return root.resolve() / ".flywheel"


def prefect_home(root: Path) -> dict[str, str]:
    """PREFECT_HOME under the project; empty if it is already set."""
    return {} if "PREFECT_HOME" in os.environ else {"PREFECT_HOME": str(home(root) / "prefect")}


def database(root: Path) -> dict[str, str]:
    """The setting of Prefect's database under the project; empty if one is already set. Sets a damaged one aside. One that
    was cut off while its tables were made or migrated is whole, for Prefect does each step in one transaction.
    """
    if any(name in os.environ for name in databases.PREFECT):
        return {}
    home(root).mkdir(exist_ok=True)
    path = home(root) / "prefect.db"
    if why := databases.damage(path):
        print(f"{path}: {why}; set aside as {set_aside(path).name}: it holds the history of runs, and nothing else")
    return {databases.PREFECT[0]: f"sqlite+aiosqlite:///{path}"}


def check_database() -> None:
    """Opens the Postgres that is set for Prefect, whose own server would end with a traceback.

    Raises:
        FlywheelError: when it does not let us in, or when its address names no driver that Prefect can use.
    """
    name = next((name for name in databases.PREFECT if os.environ.get(name)), None)
    url = os.environ[name] if name else ""
    if not url.startswith("postgres"):
        return
    given = f"{name}={masked(url)}"
    if not url.startswith(f"{databases.ASYNC}://"):
        raise FlywheelError(f"{given}: must begin with {databases.ASYNC}://, the driver that Prefect uses")
    if why := databases.refusal(url, databases.STARTING):
        raise FlywheelError(f"{given}: {why}; start it, create the database, or unset {name} to use a file of SQLite")


def _port(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise FlywheelError(f"{variable}={value}: must be a port, a whole number from 1 to 65535")
    return int(value)


# Health


def answers(api: str) -> bool:
    """Whether a Prefect server, and not another program, answers at an API URL."""
    # A workspace of Prefect Cloud (`…/api/accounts/…`) has no health endpoint of its own.
    response = _request("GET", f"{api.partition('/accounts/')[0].rstrip('/')}/health")
    return response is not None and response.text.strip() == "true"


def _polls(api: str) -> bool:
    response = _request("POST", f"{api}/work_pools/{POOL}/workers/filter", json={})
    return response is not None and any(w["status"] == "ONLINE" for w in response.json())


def _request(method: str, url: str, json: Any = None) -> httpx.Response | None:
    """The response, if its status is 200; else None. A proxy is used only for other machines."""
    try:
        response = httpx.request(method, url, json=json, timeout=3, trust_env=not is_local(url))
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    return response if response.status_code == httpx.codes.OK else None


def running(root: Path) -> dict[str, Started]:
    """This project's services that are alive."""
    path = home(root) / "services.json"
    try:
        started = {name: Started(**values) for name, values in json.loads(path.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError):
        return {}
    return {name: s for name, s in started.items() if s.process}


def running_server(root: Path) -> str | None:
    """API URL of this project's Prefect server, if it answers."""
    started = running(root).get("prefect server")
    return f"{started.url}/api" if started and answers(f"{started.url}/api") else None


def mlflow_address(root: Path) -> str | None:
    """Address of the MLflow server whose UI shows this project's runs: the one that is configured, or `flywheel up`'s."""
    store = tracking_uri(root)
    if store.startswith(("http://", "https://")):
        return store.rstrip("/")
    started = running(root).get("mlflow")
    return started.url if started else None


def is_local(url: str) -> bool:
    """Whether an address is on this machine, to which no proxy leads."""
    return httpx.URL(url).host in LOOPBACK


# Start and stop


def up(root: Path) -> None:
    """Starts the missing services (Prefect server, deployments, worker, MLflow UI), waits for each and prints its URL.

    Raises:
        FlywheelError: when a port is taken or a service does not start (with the end of its log).
    """
    with _stopping_on_error(root):
        api = _start_missing(root, running(root))
    for name, started in running(root).items():
        print(f"{name:<16}{started.url or f'polls the pool {POOL!r}'}")
    print(f"`export PREFECT_API_URL={api}` points `prefect` commands at it, such as `prefect deployment run`;")
    print("`flywheel down` stops the services; their logs are in .flywheel/logs")


def _start_missing(root: Path, alive: dict[str, Started]) -> str:
    server = prefect_server(root)
    first = [s for s in (server, mlflow_ui(root)) if s and s.name not in alive]
    for service in first:
        _check_port(service)
    if server in first:
        check_database()
    prepare(root)
    for service in first:
        _launch(root, service)
    for service in first:
        _wait_for(root, service)
    api = f"{running(root)[server.name].url}/api"
    if "prefect worker" not in alive:
        _deploy(root, api)
        _start(root, worker(root, api))
    return api


@contextmanager
def _stopping_on_error(root: Path) -> Iterator[None]:
    """Stops the services that the block started when it ends early, also by Ctrl-C."""
    before = running(root)
    try:
        yield
    except BaseException:
        _stop(root, *(name for name in running(root) if name not in before))
        raise


def down(root: Path) -> None:
    """Stops the services that `up` started and that still run, and nothing else."""
    alive = running(root)
    _stop(root, *alive)
    print(f"stopped: {', '.join(alive)}" if alive else "nothing is running that `flywheel up` started")


@contextmanager
def server(root: Path) -> Iterator[str]:
    """Yields the API URL of a Prefect server: one that runs already, or one started for the block.

    Sets PREFECT_API_URL, so every flow in the block uses it.

    Raises:
        FlywheelError: when the port is taken or the server does not start.
    """
    configured = os.environ.get("PREFECT_API_URL")
    url = configured if configured and answers(configured) else running_server(root)
    if configured and url != configured:
        print(f"PREFECT_API_URL={configured}: no Prefect server answers there; using {url or 'one for this run'}")
    with _environment("PREFECT_API_URL", url) if url else own_server(root) as api:
        yield api


@contextmanager
def own_server(root: Path, port: int | None = None) -> Iterator[str]:
    """Yields the API URL of a Prefect server that runs for the block, and no longer than this process."""
    service = prefect_server(root, port, bound=True)
    _check_port(service)
    check_database()
    process, started = _spawn(root, service, stdin=subprocess.PIPE)
    try:
        with _environment("PREFECT_API_URL", f"{service.url}/api") as url:
            import_module("prefect")  # takes about as long as the server needs to start
            _wait(root, service, lambda: process.poll() is None)
            yield url
    finally:
        _end(started)
        process.wait()


def free_port() -> int:
    """A port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def _environment(variable: str, value: str) -> Iterator[str]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield value
    finally:
        os.environ.pop(variable) if before is None else os.environ.update({variable: before})


def _start(root: Path, service: Service) -> None:
    _launch(root, service)
    _wait_for(root, service)


def _launch(root: Path, service: Service) -> None:
    _, started = _spawn(root, service, stdin=subprocess.DEVNULL)
    _remember(root, service.name, started)


def _spawn(root: Path, service: Service, stdin: int) -> tuple[subprocess.Popen[bytes], Started]:
    logs = home(root) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | strays.signature(root) | service.env
    environment = {k: v for k, v in environment.items() if v and (k != "PREFECT_API_URL" or k in service.env)}
    with _log(root, service).open("w") as log:
        process = subprocess.Popen(
            service.command,
            cwd=root,
            env=environment,
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    created = psutil.Process(process.pid).create_time()
    return process, Started(process.pid, created, service.command, service.url)


def _log(root: Path, service: Service) -> Path:
    return home(root) / "logs" / f"{service.name.replace(' ', '-')}.log"


def _wait_for(root: Path, service: Service) -> None:
    _wait(root, service, lambda: service.name in running(root))


def _wait(root: Path, service: Service, is_alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and is_alive():
        if service.healthy():
            return
        time.sleep(0.2)
    log = _log(root, service).read_text()
    if "disk is full" in log or os.strerror(errno.ENOSPC) in log or shutil.disk_usage(root).free < DISK_FULL:
        raise FlywheelError(f"{service.name} did not start: the disk is full ({root.resolve()}); free some space")
    last = "\n".join(log.strip().splitlines()[-15:])
    raise FlywheelError(f"{service.name} did not start; the end of its log:\n{last}")


def _stop(root: Path, *names: str) -> None:
    _end(*(s for name, s in running(root).items() if name in names))
    _forget(root, *names)


def _end(*services: Started) -> None:
    """Stops services with their process groups, where the processes are still the started ones."""
    alive = [process for s in services if (process := s.process)]
    processes = [p for process in alive for p in (process, *process.children(recursive=True))]
    for process in alive:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    _, stragglers = psutil.wait_procs(processes, timeout=GRACE)
    for straggler in stragglers:
        with suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(stragglers, timeout=GRACE)


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
    """The process that listens on a port, if this user may see it."""
    try:
        pids = [c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
        process = psutil.Process(next(p for p in pids if p))
        return f" by process {process.pid} ({' '.join(process.cmdline())[:80]})"
    except (psutil.Error, StopIteration):
        return ""


def _deploy(root: Path, api: str) -> None:
    environment = os.environ | {"PREFECT_API_URL": api}
    deployment = subprocess.run(
        [sys.executable, "-m", "flows.deploy"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if deployment.returncode:
        raise FlywheelError(f"the flows could not be deployed to {api}:\n{deployment.stderr.strip()[-2000:]}")
