"""SQLite files of MLflow and Prefect: whether they can be read at all."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote


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
