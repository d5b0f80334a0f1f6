"""What a request may use, and what it has used: admitted before it runs, counted when it ends.

Without limits nothing is asked of anybody before a request runs. What it used is counted however
it ends: whole, cut by the client, or by an error.
"""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from cluster.errors import PoolReplacedError
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.limiter import LimitReachedError, RateState, TenantLimiter
from cluster.tenants.limits import TenantLimits
from cluster.tenants.records import ApiKey
from cluster.tenants.usage import UsageCounts, UsageRecorder

#: Of a choice's tokens at most so many are reserved before it runs: clients seldom say how many
#: they want. What is used beyond it is owed: the next requests wait for it.
MAX_RESERVED_TOKENS = 1024
CHARS_PER_TOKEN = 4  # where nobody has counted yet

Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True, kw_only=True)
class Meter:
    """Of one request. Made without anything it measures nothing."""

    tenant: str = ""
    key_id: str = ""
    limits: TenantLimits = field(default_factory=TenantLimits)
    limiter: TenantLimiter | None = None
    usage: UsageRecorder | None = None
    state: RateState | None = None  # once it was asked for
    counts: UsageCounts | None = None  # once it has run

    @asynccontextmanager
    async def running(
        self, *, model: str, num_tokens: int, used: Callable[[], UsageCounts]
    ) -> AsyncIterator[None]:
        """Within it a request runs on `model`.

        Args:
            num_tokens: to reserve.
            used: what it has used, asked for at its end.

        Raises:
            LimitReachedError: before it runs, the tenant is at a limit.
            ServiceUnavailableError: limits cannot be looked up.
        """
        ticket = None
        if self.limiter is not None and self.limits.has_rates:
            try:
                ticket, self.state = await self.limiter.admit(
                    self.tenant, self.limits, num_tokens=num_tokens
                )
            except LimitReachedError as error:
                self.state = error.state
                raise
        moves_on = False
        try:
            yield
        except PoolReplacedError:
            moves_on = True  # and is counted where it is answered
            raise
        finally:
            counts = self.counts = UsageCounts() if moves_on else used()
            if self.limiter is not None and ticket is not None:
                self.limiter.finish(ticket, num_tokens=counts.num_tokens)
            if self.usage is not None:
                self.usage.add(self.tenant, model=model, key_id=self.key_id, counts=counts)

    def headers(self, *, is_anthropic: bool) -> Headers:
        """What an answer says of the limits: nothing where there are none."""
        if self.state is None:
            return []
        return _anthropic_headers(self.state) if is_anthropic else _openai_headers(self.state)


class Metering:
    """Of one ingress process."""

    def __init__(
        self, keys: KeyDirectory, limiter: TenantLimiter | None, usage: UsageRecorder | None
    ) -> None:
        """None: there is no Redis; limits are not held, and usage is not kept."""
        self._keys = keys
        self._limiter = limiter
        self._usage = usage

    def meter(self, key: ApiKey) -> Meter:
        """For a request with this key."""
        return Meter(
            tenant=key.tenant,
            key_id=key.key_id,
            limits=self._keys.limits(key.tenant),
            limiter=self._limiter,
            usage=self._usage,
        )

    @property
    def num_unlimited(self) -> int:
        """Requests that ran without the limits of their tenants, while Redis was away."""
        return 0 if self._limiter is None else self._limiter.num_unlimited

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """What runs beside requests runs within it."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._keys.following())
            if self._usage is not None:
                await stack.enter_async_context(self._usage.following())
            if self._limiter is not None:
                await stack.enter_async_context(self._limiter.following())
            yield


def reserved_tokens(num_prompt_tokens: int, max_tokens: int | None, *, num_choices: int) -> int:
    """What to reserve for a prompt and its choices."""
    of_choice = MAX_RESERVED_TOKENS if max_tokens is None else min(max_tokens, MAX_RESERVED_TOKENS)
    return num_prompt_tokens + num_choices * of_choice


def tokens_in(num_chars: int) -> int:
    """An estimate, where nobody has counted yet."""
    return math.ceil(num_chars / CHARS_PER_TOKEN)


def _openai_headers(state: RateState) -> Headers:
    """Telnyx's three, of requests, and OpenAI's six."""
    values: list[tuple[str, str]] = []
    if (remaining := state.remaining_requests) is not None:
        limit = str(state.limits.requests_per_minute)
        reset_s = str(math.ceil(state.requests_reset_s))
        values += [("limit", limit), ("remaining", str(remaining)), ("reset", reset_s)]
        values += [("limit-requests", limit), ("remaining-requests", str(remaining))]
        values.append(("reset-requests", _duration(state.requests_reset_s)))
    if (remaining := state.remaining_tokens) is not None:
        values.append(("limit-tokens", str(state.limits.tokens_per_minute)))
        values.append(("remaining-tokens", str(remaining)))
        values.append(("reset-tokens", _duration(state.tokens_reset_s)))
    return [(f"x-ratelimit-{name}".encode(), value.encode()) for name, value in values]


def _anthropic_headers(state: RateState) -> Headers:
    kinds = (
        (
            *("requests", state.limits.requests_per_minute),
            *(state.remaining_requests, state.requests_reset_s),
        ),
        (
            *("tokens", state.limits.tokens_per_minute),
            *(state.remaining_tokens, state.tokens_reset_s),
        ),
    )
    headers: Headers = []
    for name, limit, remaining, reset_s in kinds:
        if limit is not None:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + reset_s))
            for what, value in (("limit", limit), ("remaining", remaining), ("reset", at)):
                headers.append((f"anthropic-ratelimit-{name}-{what}".encode(), f"{value}".encode()))
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes one: `250ms`, `12s`, `1m1s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
