"""Transactions that read and then write, at the same time, on SQLite."""

import asyncio

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
