"""Leases of concurrency limits in files, so that they outlive Prefect's server; it imports this module by its name.

Prefect keeps them in memory: after a restart every run that holds one ends, and its limit stays taken. Its own store in files
reads and writes one list of when each expires, and two runs that renew theirs at the same moment lose one of the two entries.
Here they wait for each other.
"""

import asyncio
from typing import Any

from prefect.server.concurrency.lease_storage import filesystem

_list = asyncio.Lock()


class ConcurrencyLeaseStorage(filesystem.ConcurrencyLeaseStorage):
    """Leases in PREFECT_HOME, one change at a time."""

    async def create_lease(self, *args: Any, **kwargs: Any) -> Any:
        """A new lease."""
        async with _list:
            return await super().create_lease(*args, **kwargs)

    async def renew_lease(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a lease was there, which now ends later."""
        async with _list:
            return await super().renew_lease(*args, **kwargs)

    async def revoke_lease(self, *args: Any, **kwargs: Any) -> None:
        """Ends a lease."""
        async with _list:
            await super().revoke_lease(*args, **kwargs)
