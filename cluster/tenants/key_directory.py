"""Whose key it is, and what its tenant may use: known in this process, without asking each time.

Keys and tenants of Redis are kept in memory while their version there stays the same; it is looked
at every `POLL_S`, so that a revoked key opens nothing for longer than that. While Redis is away
what is known goes on for `redis_grace_s`. Keys of the configuration need no Redis.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.api_keys import ApiKeys
from cluster.config import DEFAULT_TENANT
from cluster.errors import ServiceUnavailableError
from cluster.tenant_config import TenantsConfig
from cluster.tenants.limits import TenantLimits
from cluster.tenants.records import ApiKey, KeyRecord, key_id_of
from cluster.tenants.tenant_store import TenantStore

POLL_S = 2.0
TOUCH_EVERY_S = 60.0
MAX_KNOWN_KEYS = 20_000  # ids that are no key's among them

logger = logging.getLogger(__name__)


class KeyDirectory:
    """Belongs to one event loop. Without a store there are the configured keys only."""

    def __init__(
        self, configured: ApiKeys, config: TenantsConfig, store: TenantStore | None = None
    ) -> None:
        self._configured = configured
        self._store = store
        self._grace_s = config.redis_grace_s
        self.default_limits = TenantLimits.of(config.default_limits)
        self._limits: dict[str, TenantLimits] = {}  # of tenants that have their own
        self._keys: OrderedDict[str, KeyRecord | None] = OrderedDict()  # by id
        self._version: int | None = None  # of all that is known here
        self._confirmed_s = 0.0  # when it was last the newest
        self._changed = asyncio.Event()  # it is known not to be
        self._used_at: dict[str, float] = {}  # by id, since the last touch

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._configured.required

    async def find(self, text: str) -> ApiKey | None:
        """The key with this text; None: there is none, or it has expired.

        Raises:
            ServiceUnavailableError: only Redis knows, and does not answer.
        """
        configured = self._configured.find(text)
        if configured is not None:
            return ApiKey.configured(configured)
        key_id = key_id_of(text)
        if key_id is None or self._store is None:
            return None
        record = await self._record(self._store, key_id)
        if record is None or not record.is_of(text) or record.is_expired():
            return None
        self._used_at[key_id] = time.time()
        return ApiKey.stored(record)

    def nobody(self) -> ApiKey:
        """Who asks without a key, where none is needed."""
        return ApiKey.nobody(DEFAULT_TENANT)

    def limits(self, tenant: str) -> TenantLimits:
        """What is in force for a tenant."""
        return self._limits.get(tenant, self.default_limits)

    async def refresh(self) -> None:
        """See whether anything has changed, and read it.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        if self._store is None:
            return
        self._changed.clear()
        version = await self._store.version()
        if version != self._version:
            tenants = await self._store.tenants()
            self._limits = {one.name: one.limits.over(self.default_limits) for one in tenants}
            self._keys.clear()
            self._version = version
        self._confirmed_s = time.monotonic()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow what changes in Redis, within it."""
        if self._store is None:
            yield
            return
        try:
            await self.refresh()
        except ServiceUnavailableError as error:
            logger.warning("tenants and keys of Redis are not known yet: %s", error)
        running = asyncio.create_task(self._follow(self._store))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self._touch(self._store)

    async def _follow(self, store: TenantStore) -> None:
        touched_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            try:
                await self.refresh()
            except ServiceUnavailableError:
                self._changed.clear()  # the client has logged it; the next look is in a while
            except Exception:  # the top of a task: keys must not stop to be looked at
                logger.exception("tenants and keys could not be read")
            if time.monotonic() - touched_s >= TOUCH_EVERY_S:
                touched_s = time.monotonic()
                await self._touch(store)

    async def _touch(self, store: TenantStore) -> None:
        used_at, self._used_at = self._used_at, {}
        if not used_at:
            return
        try:
            await store.touch(used_at)
        except ServiceUnavailableError:
            self._used_at = used_at | self._used_at

    async def _record(self, store: TenantStore, key_id: str) -> KeyRecord | None:
        is_confirmed = time.monotonic() - self._confirmed_s <= max(self._grace_s, 2 * POLL_S)
        if key_id in self._keys and is_confirmed:
            self._keys.move_to_end(key_id)
            return self._keys[key_id]
        found = await store.find_key(key_id)
        if found.version == self._version:
            self._keys[key_id] = found.record
            if len(self._keys) > MAX_KNOWN_KEYS:
                self._keys.popitem(last=False)
        else:
            self._changed.set()  # what is known here is old: not to be mixed with this
        return found.record
