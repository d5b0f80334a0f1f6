"""Limits on requests, tokens and running requests, held by all ingresses together.

Whether a request may run is one script, of one round trip. A window is any 60 seconds: what is
admitted is counted in buckets of a second, and a bucket counts until it is over for sure, so that
at most the limit is admitted in whatever minute one looks at. Tokens are reserved before a request
runs and settled to the true count after it. Running requests are leases: those of a process that
dies end by themselves.

Keys begin with `<key_prefix>:1:`; T is a tenant, and the braces put its keys into one slot.

| key | type | holds |
|---|---|---|
| `{tenant/T}:rates` | HASH | `r<second>`, `t<second>`: requests and tokens of a second; and below |
| `{tenant/T}:running` | ZSET | tickets of running requests, by when their leases end (Unix ms) |

The other fields of `rates`: `R` and `T`, the sums of the buckets; `first`, the oldest second that
is in them; `lr` and `lt`, the newest with a request and with tokens.

While Redis is away, requests run without limits for `redis_grace_s`, which the log and the metric
`shoal:unlimited_requests` say; then they are refused. An answer that is late may mean that we are
overloaded, and no load may lift a limit: then a request is refused (503), until nothing has come
for `AWAY_AFTER_S`.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple

from cluster.errors import ServiceUnavailableError, TooManyRequestsError
from cluster.redis_client import Argument, RedisClient, RedisSilentError, Script
from cluster.tenants.limits import TenantLimits

WINDOW_S = 60
LEASE_S = 30.0
RENEW_S = 10.0
RETRY_AFTER_RUNNING_S = 1.0  # nobody knows when one of the running requests ends
AWAY_AFTER_S = 3.0
_TRY_AGAIN_S = 1.0  # after Redis did not answer
_EXPIRY_S = 3 * WINDOW_S  # of the counts of a tenant that asks for nothing

# What both scripts begin with: buckets that are over go. Sets now (seconds, a float), second,
# oldest (the first second that counts), R and T.
_FORGET = f"""
local rates, running = KEYS[1], KEYS[2]
local clock = redis.call('TIME')
local second, now = tonumber(clock[1]), clock[1] + clock[2] / 1000000
local oldest = second - {WINDOW_S}
local sums = redis.call('HMGET', rates, 'R', 'T', 'first')
local R, T, first = tonumber(sums[1] or 0), tonumber(sums[2] or 0), tonumber(sums[3] or oldest)
if oldest - first > {WINDOW_S} then
  redis.call('DEL', rates)
  R, T = 0, 0
else
  for s = first, oldest - 1 do
    local over = redis.call('HMGET', rates, 'r' .. s, 't' .. s)
    R, T = R - (over[1] or 0), T - (over[2] or 0)
    redis.call('HDEL', rates, 'r' .. s, 't' .. s)
  end
end
redis.call('HSET', rates, 'R', R, 'T', T, 'first', math.max(first, oldest))
redis.call('EXPIRE', rates, {_EXPIRY_S})
"""

# KEYS: rates, running. ARGV: ticket, tokens to reserve, ms of a lease, and the limits of requests,
# tokens and running requests ("": none)
# -> what is at its limit ("": it is admitted), ms until there is room, the second, R, T, and ms
#    until R and T are 0
_ADMIT = Script(
    _FORGET
    + f"""
local wanted = tonumber(ARGV[2])
local max_R, max_T, max_running = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local function ms_until(s) return math.ceil((s + {WINDOW_S} + 1 - now) * 1000) end

local function room_in(name, excess)
  for s = oldest, second do
    excess = excess - (redis.call('HGET', rates, name .. s) or 0)
    if excess <= 0 then return ms_until(s) end
  end
  return -1
end

local limit, wait = '', 0
if max_R and R + 1 > max_R then
  limit, wait = 'requests', room_in('r', R + 1 - max_R)
end
if max_T and T + wanted > max_T and wait >= 0 then
  local room = wanted > max_T and -1 or room_in('t', T + wanted - max_T)
  if limit == '' or room < 0 or room > wait then limit, wait = 'tokens', room end
end
if max_running then
  redis.call('ZREMRANGEBYSCORE', running, '-inf', math.floor(now * 1000))
  if limit == '' and redis.call('ZCARD', running) >= max_running then limit = 'running' end
end
if limit == '' then
  R, T = R + 1, T + wanted
  redis.call('HSET', rates, 'R', R, 'T', T, 'lr', second, 'lt', second)
  redis.call('HINCRBY', rates, 'r' .. second, 1)
  redis.call('HINCRBY', rates, 't' .. second, wanted)
  if max_running then
    redis.call('ZADD', running, math.floor(now * 1000) + ARGV[3], ARGV[1])
    redis.call('PEXPIRE', running, ARGV[3])
  end
end
local last = redis.call('HMGET', rates, 'lr', 'lt')
local reset_R = R > 0 and ms_until(tonumber(last[1] or second)) or 0
local reset_T = T > 0 and ms_until(tonumber(last[2] or second)) or 0
return {{limit, wait, second, R, T, reset_R, reset_T}}
"""
)

# KEYS: rates, running. ARGV: ticket, the second of its admission, tokens reserved, tokens used.
# What was used beyond a reservation that is over counts now.
_SETTLE = Script(
    _FORGET
    + """
local at, more = tonumber(ARGV[2]), ARGV[4] - ARGV[3]
if at < oldest then at, more = second, math.max(more, 0) end
if more ~= 0 then
  redis.call('HINCRBY', rates, 't' .. at, more)
  redis.call('HSET', rates, 'T', T + more)
  if at == second then redis.call('HSET', rates, 'lt', second) end
end
redis.call('ZREM', running, ARGV[1])
"""
)

# KEYS: running. ARGV: ms of a lease, tickets
_RENEW = Script(
    """
local clock = redis.call('TIME')
local ends = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[1]
for at = 2, #ARGV do redis.call('ZADD', KEYS[1], ends, ARGV[at]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)

logger = logging.getLogger(__name__)


class Ticket(NamedTuple):
    """A request that was admitted."""

    ticket_id: str
    tenant: str
    second: int
    num_reserved: int  # tokens


class RateState(NamedTuple):
    """Where a tenant stands, for the headers of an answer."""

    limits: TenantLimits
    num_requests: int  # in the window
    num_tokens: int
    requests_reset_s: float  # until the window is empty, if nothing comes
    tokens_reset_s: float

    @property
    def remaining_requests(self) -> int | None:
        return _remaining(self.limits.requests_per_minute, self.num_requests)

    @property
    def remaining_tokens(self) -> int | None:
        return _remaining(self.limits.tokens_per_minute, self.num_tokens)


class Admission(NamedTuple):
    """Both are None where Redis did not answer."""

    ticket: Ticket | None
    state: RateState | None


class LimitReachedError(TooManyRequestsError):
    """A tenant is at one of its limits."""

    def __init__(self, detail: str, *, state: RateState, retry_after_s: float | None) -> None:
        super().__init__(detail, openai_code="rate_limit_exceeded", retry_after_s=retry_after_s)
        self.state = state

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Errors travel between processes."""
        made = partial(type(self), state=self.state, retry_after_s=self.retry_after_s)
        return made, (self.detail,)


class TenantLimiter:
    """Of one process, all tenants. `following` keeps its leases alive."""

    def __init__(self, redis: RedisClient, *, grace_s: float) -> None:
        self._redis = redis
        self._grace_s = grace_s
        self._tickets: dict[str, Ticket] = {}  # with leases, by id
        self._background: set[asyncio.Task[None]] = set()
        self._failing_since_s: float | None = None  # no answer since then
        self._away_since_s: float | None = None
        self._next_try_s = 0.0
        self.num_unlimited = 0  # requests that ran while Redis was away

    async def admit(self, tenant: str, limits: TenantLimits, *, num_tokens: int) -> Admission:
        """Count a request in. `num_tokens` are reserved. Call `finish` with the ticket.

        Raises:
            LimitReachedError: the tenant is at a limit.
            ServiceUnavailableError: Redis is away for too long, or perhaps away.
        """
        if self._away_since_s is not None and time.monotonic() < self._next_try_s:
            return self._without_limits()
        ticket_id = uuid.uuid4().hex
        args: list[Argument] = [ticket_id, num_tokens, round(LEASE_S * 1000)]
        args += [
            "" if limit is None else limit
            for limit in (
                limits.requests_per_minute,
                limits.tokens_per_minute,
                limits.concurrent_requests,
            )
        ]
        try:
            answer = await self._redis.run(_ADMIT, keys=self._keys(tenant), args=args)
        except ServiceUnavailableError as error:
            if not self._is_away_after(error):
                raise
            return self._without_limits()
        self._note_answer()
        limit, wait_ms, second, num_requests, num_counted, requests_ms, tokens_ms = answer
        state = RateState(limits, num_requests, num_counted, requests_ms / 1000, tokens_ms / 1000)
        if limit:
            raise _reached(limit.decode(), tenant, state, num_tokens, wait_ms / 1000)
        ticket = Ticket(ticket_id, tenant, second, num_tokens)
        if limits.concurrent_requests is not None:
            self._tickets[ticket_id] = ticket
        return Admission(ticket, state)

    def finish(self, ticket: Ticket, *, num_tokens: int) -> None:
        """A request has ended, and used so many tokens. Returns at once."""
        self._tickets.pop(ticket.ticket_id, None)
        self._start(self._settle(ticket, num_tokens))

    async def settled(self) -> None:
        """Wait until everything that has ended is written down."""
        await asyncio.gather(*self._background)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Keep leases alive, within it."""
        running = asyncio.create_task(self._renew_all())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.settled()

    async def _settle(self, ticket: Ticket, num_tokens: int) -> None:
        # Where it fails, the reservation ends with its window, and the lease by itself.
        with suppress(ServiceUnavailableError):
            await self._redis.run(
                _SETTLE,
                keys=self._keys(ticket.tenant),
                args=(ticket.ticket_id, ticket.second, ticket.num_reserved, num_tokens),
            )

    async def _renew_all(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            by_tenant: dict[str, list[str]] = {}
            for ticket in self._tickets.values():
                by_tenant.setdefault(ticket.tenant, []).append(ticket.ticket_id)
            for tenant, ids in by_tenant.items():
                try:
                    await self._redis.run(
                        _RENEW,
                        keys=[self._keys(tenant)[1]],
                        args=(round(LEASE_S * 1000), *ids),
                    )
                except ServiceUnavailableError:
                    break  # the client has logged it

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _without_limits(self) -> Admission:
        """
        Raises:
            ServiceUnavailableError: for too long.
        """
        assert self._away_since_s is not None, "called when Redis is away"
        if time.monotonic() - self._away_since_s > self._grace_s:
            raise ServiceUnavailableError(
                "Limits cannot be looked up: Redis is away.", retry_after_s=_TRY_AGAIN_S
            )
        self.num_unlimited += 1
        return Admission(None, None)

    def _is_away_after(self, error: ServiceUnavailableError) -> bool:
        """Whether a failure means that Redis is away."""
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        is_silence = isinstance(error, RedisSilentError)
        if is_silence and now_s - self._failing_since_s < AWAY_AFTER_S:
            return False
        self._next_try_s = now_s + _TRY_AGAIN_S
        if self._away_since_s is None:
            self._away_since_s = now_s
            logger.error(
                "limits of tenants are NOT held for up to %g s, then requests of limited tenants"
                " are refused: %s",
                self._grace_s,
                error,
            )
        return True

    def _note_answer(self) -> None:
        self._failing_since_s = None
        if self._away_since_s is not None:
            self._away_since_s = None
            logger.warning("limits of tenants are held again")

    def _keys(self, tenant: str) -> list[str]:
        stem = self._redis.key(f"{{tenant/{tenant}}}")
        return [f"{stem}:rates", f"{stem}:running"]


def _remaining(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


def _reached(
    limit: str, tenant: str, state: RateState, num_tokens: int, wait_s: float
) -> LimitReachedError:
    limits = state.limits
    if limit == "running":
        what = f"{limits.concurrent_requests} requests at the same time"
        wait_s = RETRY_AFTER_RUNNING_S if limits.concurrent_requests else -1.0
    elif limit == "requests":
        what = f"{limits.requests_per_minute} requests per minute"
    else:
        what = f"{limits.tokens_per_minute} tokens per minute; this request asks for {num_tokens}"
    if wait_s < 0:
        return LimitReachedError(
            f"The tenant {tenant!r} may use at most {what}.", state=state, retry_after_s=None
        )
    retry_after_s = max(1, math.ceil(wait_s))
    return LimitReachedError(
        f"The tenant {tenant!r} has reached its limit of {what}. Try again in {retry_after_s} s.",
        state=state,
        retry_after_s=retry_after_s,
    )
