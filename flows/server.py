"""`python -m flows.server start …`: Prefect's server, whose transactions on SQLite wait for each other.

Prefect opens its database in WAL mode with a busy timeout of a minute, and begins transactions DEFERRED. One that has read
and then writes fails at once with "database is locked" where another has written meanwhile, whatever the timeout, since
SQLite cannot let it write on top of what it has not seen. IMMEDIATE takes the write lock at the beginning, which waits. On
Postgres nothing changes.

With `--until-stdin-closes` the server ends when its standard input does. The command that started it holds the other end of
that pipe, so a server that was started for one command does not outlive it, however that ends.

A server that was away cannot know whether runs sent a sign of life meanwhile. Prefect counts its absence as their silence, so
those that are alive would be marked as crashed when it is back: here the time within which the next one must come begins anew.

Prefect itself answers every page of every site. Here only its own pages are answered: `flows.origins`.
"""

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from threading import Thread
from typing import Any

from prefect.cli import app
from prefect.server.api import server
from prefect.server.database import provide_database_interface
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.events import triggers
from prefect.types import DateTime
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from flows import UNTIL_STDIN_CLOSES, crashes
from flows.origins import guarded

GRACE = 5.0
"""Seconds between SIGTERM and the end of a server that does not end by itself."""

_begin = AioSqliteConfiguration.begin_transaction


@asynccontextmanager
async def immediate(self: AioSqliteConfiguration, session: Any, with_for_update: bool = True) -> AsyncIterator[Any]:
    """A transaction that takes the write lock when it begins."""
    async with _begin(self, session, with_for_update=True) as transaction:
        yield transaction


AioSqliteConfiguration.begin_transaction = immediate  # type: ignore[method-assign]


_load = triggers.load_automations


async def load_automations(session: AsyncSession) -> None:
    """Loads the automations when the server starts. Runs of these flows have until `crashes.SILENCE` later to send a sign of life,
    and their late ones, which come in a moment and each end the time of the one before, are not judged meanwhile.
    """
    database, end = provide_database_interface(), DateTime.now(UTC) + crashes.SILENCE
    bucket, automation = database.AutomationBucket, database.Automation
    ours = select(automation.id).where(automation.name == crashes.NAME)
    await session.execute(
        update(bucket)
        .where(bucket.automation_id.in_(ours), bucket.end < end)
        .values(end=end)
        .execution_options(synchronize_session=False)
    )
    await session.commit()
    triggers.load_automations = _load  # later loads follow a change of an automation
    await _load(session)
    waiting = (t for t in triggers.triggers.values() if t.automation.name == crashes.NAME)
    triggers.next_proactive_runs.update({trigger.id: end for trigger in waiting})


triggers.load_automations = load_automations


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)  # an open connection may keep it
    os._exit(1)


if __name__ == "__main__":
    if UNTIL_STDIN_CLOSES in sys.argv:
        sys.argv.remove(UNTIL_STDIN_CLOSES)
        Thread(target=_end_with_stdin, daemon=True).start()
    server.create_app = guarded(server.create_app)
    sys.argv.insert(1, "server")
    app()
