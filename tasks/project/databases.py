"""Databases of MLflow and Prefect: whether a file of SQLite can be read at all, and whether a server lets us in."""

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

PREFECT = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""Prefect's setting of its database: current and former name."""
SERVERS = ("postgresql", "mysql", "mssql")
"""How addresses of database servers begin."""
ASYNC = "postgresql+asyncpg"
"""How Prefect wants an address of Postgres to begin."""
PAUSE, ANSWER = 0.5, 5
"""Seconds between two attempts at a server, and until one that does not answer counts as away."""
STARTING = 5.0
"""Seconds for which a server that does not let us in is asked again: it may be starting."""


def tables(path: Path) -> set[str]:
    """Names of a database's tables.

    Raises:
        sqlite3.DatabaseError: when the file is no database, or damaged.
    """
    with closing(_read_only(path)) as connection:
        return {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}


def damage(path: Path, every_page: bool = False) -> str | None:
    """Why a file is no database; None where it is one, or absent. Looks at its list of tables, or at all of it."""
    if not path.exists():
        return None
    try:
        tables(path)
        if every_page:
            with closing(_read_only(path)) as connection:
                [found] = connection.execute("pragma quick_check(1)").fetchone()
            return None if found == "ok" else found.replace("\n", ": ")
    except sqlite3.OperationalError:  # busy, or not this user's: no damage
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)


def refusal(url: str, patience: float = 0.0) -> str | None:
    """Why a database server does not let us in, in its own words; None where it does, and for what is no database server. It
    is asked again for `patience` seconds.
    """
    if url.partition(":")[0].partition("+")[0] not in SERVERS:
        return None
    end = time.monotonic() + patience
    while (why := _refusal(url)) and time.monotonic() < end:
        time.sleep(PAUSE)
    return why


def _refusal(url: str) -> str | None:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if "+asyncpg:" in url:
            with ThreadPoolExecutor(1) as thread:  # the caller's may run an event loop
                thread.submit(asyncio.run, _open_async(url)).result()
        else:
            _open(url)
    except ImportError as error:
        return f"{error}; install what its address asks for (`pip install 'flywheel[postgres]'` for postgresql://)"
    except (SQLAlchemyError, OSError, ValueError) as error:  # the last of a port that is no number
        return _line(getattr(error, "orig", None) or error)
    except Exception as error:
        if not type(error).__module__.startswith("asyncpg."):
            raise
        return _line(error)
    return None


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _open(url: str) -> None:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.pool import NullPool

    given: dict[str, Any] = {"connect_timeout": ANSWER} if make_url(url).get_driver_name() == "psycopg2" else {}
    create_engine(url, poolclass=NullPool, connect_args=given).connect().close()


async def _open_async(url: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    async with create_async_engine(url, poolclass=NullPool, connect_args={"timeout": ANSWER}).connect():
        pass
