"""Places that tenants share: a free one goes to whoever has the fewest of them."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairPlaces:
    """Belongs to one event loop. Tenants with equally many take turns; one alone may have all."""

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._held: Counter[str] = Counter()
        # By tenant, whose turn was the longest ago first; tenants that wait for nothing are not in.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """One place, from when there is one until the end of the `async with`."""
        await self._take(tenant)
        try:
            yield
        finally:
            self._give_back(tenant)

    async def _take(self, tenant: str) -> None:
        if self._num_free:  # then nobody waits
            self._num_free -= 1
            self._held[tenant] += 1
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if given.cancelled():
                self._forget(tenant, given)
            else:  # it was given at the same moment
                self._give_back(tenant)
            raise

    def _give_back(self, tenant: str) -> None:
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        if not self._waiting:
            self._num_free += 1
            return
        following = min(self._waiting, key=lambda waiting: self._held[waiting])
        futures = self._waiting.pop(following)
        futures.popleft().set_result(None)
        if futures:
            self._waiting[following] = futures  # behind the others
        self._held[following] += 1

    def _forget(self, tenant: str, given: asyncio.Future[None]) -> None:
        futures = self._waiting[tenant]
        futures.remove(given)
        if not futures:
            del self._waiting[tenant]
