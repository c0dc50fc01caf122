"""`python -m flows.server start …`: Prefect's server, whose transactions on SQLite wait for each other.

Prefect opens its database in WAL mode with a busy timeout of a minute, and begins transactions DEFERRED. One that has read
and then writes fails at once with "database is locked" where another has written meanwhile, whatever the timeout, since
SQLite cannot let it write on top of what it has not seen. IMMEDIATE takes the write lock at the beginning, which waits. On
Postgres nothing changes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration

_begin = AioSqliteConfiguration.begin_transaction


@asynccontextmanager
async def immediate(self: AioSqliteConfiguration, session: Any, with_for_update: bool = True) -> AsyncIterator[Any]:
    """A transaction that takes the write lock when it begins."""
    async with _begin(self, session, with_for_update=True) as transaction:
        yield transaction


AioSqliteConfiguration.begin_transaction = immediate  # type: ignore[method-assign]

if __name__ == "__main__":
    import sys

    sys.argv.insert(1, "server")
    app()
