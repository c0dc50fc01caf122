"""A server of Postgres for tests: Debian's own programs, on a port of loopback, in a folder that goes with it."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "hush-hush"
USER = "flywheel"


def programs() -> Path | None:
    """The folder of Postgres' programs; None where there are none."""
    found = shutil.which("initdb")
    return Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def free_port() -> int:
    """A port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """A server; it refuses root, so under root it runs as `nobody`."""

    def __init__(self, folder: Path, bin: Path) -> None:
        self.folder, self.bin = folder, bin
        self.data = folder / "data"
        self.port = free_port()

    def url(self, database: str, driver: str = "postgresql", password: str = PASSWORD) -> str:
        """The address of one of its databases."""
        return f"{driver}://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def make(self, *databases: str) -> None:
        """Makes the server's folder, starts it and creates databases."""
        (self.folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, "nobody", "nogroup")
        self._run("initdb", "-U", USER, "-A", "scram-sha-256", "--pwfile", self.folder / "password", "--no-sync")
        self.start()
        for database in databases:
            self.sql("postgres", f"create database {database}")

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        """Ends it at once, as a crash does: connections are cut off."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def sql(self, database: str, query: str) -> list[tuple]:
        """The rows of a query."""
        import psycopg2

        connection = psycopg2.connect(self.url(database))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _run(self, program: str, *arguments: object) -> None:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        command = [self.bin / program, "-D", self.data, *map(str, arguments)]
        with (self.folder / "output").open("a") as output:  # no pipe: the server would keep it open
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", check=True, **user)


@contextmanager
def running(bin: Path, *databases: str) -> Iterator[Postgres]:
    """A server with these databases, for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="flywheel-postgres-"))  # not pytest's, which another user cannot enter
    server = Postgres(folder, bin)
    try:
        server.make(*databases)
        yield server
    finally:
        if (server.data / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
