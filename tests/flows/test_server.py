"""Transactions that read and then write, at the same time, on SQLite."""

import asyncio
import os
import subprocess
import sys
from functools import partial

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from flows import server


async def increment(config, times: int) -> int:
    """Adds 1 to a number in the database in several transactions at once; returns the number at the end."""
    engine = await config.engine()

    async def once():
        async with await config.session(engine) as session, config.begin_transaction(session):
            number = (await session.execute(text("select n from t"))).scalar()
            await asyncio.sleep(0.01)
            await session.execute(text("update t set n = :n"), {"n": number + 1})

    async with engine.begin() as connection:
        await connection.execute(text("create table t (n integer)"))
        await connection.execute(text("insert into t values (0)"))
    try:
        await asyncio.gather(*(once() for _ in range(times)))
        async with engine.connect() as connection:
            return (await connection.execute(text("select n from t"))).scalar()
    finally:
        await engine.dispose()


def test_they_wait_for_each_other(tmp_path):
    config = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/p.db")
    assert asyncio.run(increment(config, 5)) == 5


def test_without_it_they_fail(tmp_path, monkeypatch):
    """Once this fails, Prefect does it by itself, and `flows.server` can go."""
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", server._begin)
    config = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/p.db")
    with pytest.raises(OperationalError, match="locked"):
        asyncio.run(increment(config, 5))


def test_leases_of_limits_outlive_the_server(tmp_path):
    """In its memory they would end with it: runs that hold one are terminated then, and the limit stays taken."""
    code = (
        "import flows.server\nfrom prefect.server.concurrency.lease_storage import get_concurrency_lease_storage as storage\n"
        "print(storage().storage_path)"
    )
    home = {"PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | home, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "concurrency_leases")


def test_leases_that_are_renewed_at_once_are_all_renewed(tmp_path):
    """Prefect's own store loses some: they expire while their runs go on, which ends these."""
    from datetime import timedelta
    from uuid import uuid4

    from flows.leases import ConcurrencyLeaseStorage

    async def expired() -> list:
        storage = ConcurrencyLeaseStorage(tmp_path)
        made = await asyncio.gather(*(storage.create_lease([uuid4()], timedelta(seconds=-1)) for _ in range(8)))
        assert len(await storage.read_expired_lease_ids()) == 8
        assert all(await asyncio.gather(*(storage.renew_lease(lease.id, timedelta(minutes=5)) for lease in made)))
        return await storage.read_expired_lease_ids()

    assert asyncio.run(expired()) == []


def test_a_server_that_was_away_gives_runs_time_for_a_sign_of_life(tmp_path, monkeypatch):
    """Of these flows' automation alone; another one's windows stay as they were."""
    from datetime import UTC, datetime, timedelta
    from uuid import uuid4

    from prefect.server.database import provide_database_interface
    from prefect.server.events import triggers
    from prefect.server.events.actions import DoNothing
    from prefect.server.events.schemas.automations import EventTrigger, Posture
    from prefect.types import DateTime
    from sqlalchemy import insert, select

    from flows import crashes

    database = provide_database_interface()
    config = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/p.db")
    monkeypatch.setattr(triggers, "load_automations", server.load_automations)

    tables = [database.Automation.__table__, database.AutomationBucket.__table__]

    async def reopened() -> dict[str, datetime]:
        past = DateTime.now(UTC) - timedelta(minutes=10)
        engine = await config.engine()
        async with engine.begin() as connection:
            await connection.run_sync(partial(database.Base.metadata.create_all, tables=tables))
        async with await config.session(engine) as session:
            for name in (crashes.NAME, "another's"):
                trigger = EventTrigger(expect={crashes.ALIVE}, posture=Posture.Proactive, within=crashes.SILENCE)
                automation = {"id": uuid4(), "name": name, "trigger": trigger, "actions": [DoNothing()]}
                await session.execute(insert(database.Automation).values(**automation))
                bucket = {"automation_id": automation["id"], "trigger_id": trigger.id, "count": 0}
                await session.execute(insert(database.AutomationBucket).values(**bucket, start=past, end=past))
            await session.commit()
            await server.load_automations(session)
            query = select(database.Automation.name, database.AutomationBucket.end).join(
                database.AutomationBucket, database.AutomationBucket.automation_id == database.Automation.id
            )
            found = dict((await session.execute(query)).tuples().all())
        await engine.dispose()
        return found

    ends = asyncio.run(reopened())
    assert ends[crashes.NAME] > datetime.now(UTC) + crashes.SILENCE / 2
    assert ends["another's"] < datetime.now(UTC)
    names = {t.automation.name for t in triggers.triggers.values() if t.id in triggers.next_proactive_runs}
    triggers.clear_loaded_automations()
    assert names == {crashes.NAME}, "is not judged at once"
    assert triggers.load_automations is server._load
