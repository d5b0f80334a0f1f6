"""Limits on a real Redis: exact under many clients, and kind where Redis is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from cluster.config import RedisConfig
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import RedisClient, connect
from cluster.tenants import limiter as limiter_module
from cluster.tenants.limiter import Admission, LimitReachedError, TenantLimiter, Ticket
from cluster.tenants.limits import TenantLimits
from tests.redis_server import RedisServer, impatient, patient_config


@pytest.fixture
def limiter(redis_client: RedisClient) -> TenantLimiter:
    return TenantLimiter(redis_client, grace_s=300)


@pytest.fixture
async def three_limiters(redis_config: RedisConfig) -> AsyncIterator[list[TenantLimiter]]:
    """As three ingress processes have them, each with its own connections."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(redis_config)) for _ in range(3)]
        yield [TenantLimiter(client, grace_s=300) for client in clients]


def ticket_of(admission: Admission) -> Ticket:
    assert admission.ticket is not None
    return admission.ticket


async def try_to_admit(
    limiter: TenantLimiter, limits: TenantLimits, *, num_tokens: int = 1
) -> Admission | LimitReachedError:
    try:
        return await limiter.admit("acme", limits, num_tokens=num_tokens)
    except LimitReachedError as error:
        return error


async def test_two_hundred_clients_of_three_limiters_get_exactly_the_limit(
    three_limiters: list[TenantLimiter],
) -> None:
    limits = TenantLimits(requests_per_minute=77, tokens_per_minute=500)

    async def client(number: int) -> int:
        """How many of its requests were admitted."""
        outcomes = [
            await try_to_admit(three_limiters[number % 3], limits, num_tokens=5) for _ in range(5)
        ]
        for outcome in outcomes:
            if isinstance(outcome, LimitReachedError):
                assert outcome.retry_after_s is not None
                assert 1 <= outcome.retry_after_s <= 61
        return sum(isinstance(outcome, Admission) for outcome in outcomes)

    # All of it takes less than a window: nothing admitted has left it before the end.
    admitted = await asyncio.gather(*(client(number) for number in range(200)))
    assert sum(admitted) == 77
    tokens_only = TenantLimits(tokens_per_minute=500)
    more = [await try_to_admit(three_limiters[0], tokens_only, num_tokens=5) for _ in range(50)]
    assert sum(isinstance(one, Admission) for one in more) == 500 // 5 - 77


async def test_requests_at_the_same_time_never_exceed_their_limit(
    three_limiters: list[TenantLimiter],
) -> None:
    limits = TenantLimits(concurrent_requests=9)
    num_running = most_running = num_done = 0

    async def client(limiter: TenantLimiter) -> None:
        nonlocal num_running, most_running, num_done
        while True:
            outcome = await try_to_admit(limiter, limits)
            if isinstance(outcome, Admission):
                break
            await asyncio.sleep(0.01)
        num_running += 1
        most_running = max(most_running, num_running)
        await asyncio.sleep(0)
        num_running -= 1
        num_done += 1
        limiter.finish(ticket_of(outcome), num_tokens=0)

    await asyncio.gather(*(client(three_limiters[number % 3]) for number in range(60)))
    assert num_done == 60
    assert most_running <= 9
    await asyncio.gather(*(one.settled() for one in three_limiters))
    outcomes = [await try_to_admit(three_limiters[0], limits) for _ in range(10)]
    assert [isinstance(one, Admission) for one in outcomes] == [True] * 9 + [False]


async def test_the_state_counts_down_and_says_when_it_is_whole_again(
    limiter: TenantLimiter,
) -> None:
    limits = TenantLimits(requests_per_minute=2, tokens_per_minute=100)
    state = (await limiter.admit("acme", limits, num_tokens=30)).state
    assert state is not None
    assert (state.remaining_requests, state.remaining_tokens) == (1, 70)
    assert 59 <= state.requests_reset_s <= 61
    assert 59 <= state.tokens_reset_s <= 61
    await limiter.admit("acme", limits, num_tokens=30)
    with pytest.raises(LimitReachedError, match="2 requests per minute") as caught:
        await limiter.admit("acme", limits, num_tokens=1)
    assert caught.value.state.remaining_requests == 0
    assert caught.value.state.remaining_tokens == 40
    other = (await limiter.admit("other", limits, num_tokens=1)).state
    assert other is not None
    assert other.remaining_requests == 1


async def test_reserved_tokens_are_settled_to_the_true_count(limiter: TenantLimiter) -> None:
    limits = TenantLimits(tokens_per_minute=100)
    ticket = ticket_of(await limiter.admit("acme", limits, num_tokens=90))
    with pytest.raises(LimitReachedError, match="this request asks for 20"):
        await limiter.admit("acme", limits, num_tokens=20)
    limiter.finish(ticket, num_tokens=10)
    await limiter.settled()
    again = await limiter.admit("acme", limits, num_tokens=20)
    assert again.state is not None
    assert again.state.remaining_tokens == 70
    limiter.finish(ticket_of(again), num_tokens=85)  # more than was reserved: it is owed
    await limiter.settled()
    with pytest.raises(LimitReachedError):
        await limiter.admit("acme", limits, num_tokens=6)


async def test_what_can_never_be_admitted_has_no_time_to_come_back(limiter: TenantLimiter) -> None:
    for limits in (
        TenantLimits(tokens_per_minute=10),
        TenantLimits(requests_per_minute=0),
        TenantLimits(concurrent_requests=0),
    ):
        with pytest.raises(LimitReachedError) as caught:
            await limiter.admit("acme", limits, num_tokens=11)
        assert caught.value.retry_after_s is None


async def test_the_window_slides(limiter: TenantLimiter, redis_client: RedisClient) -> None:
    """Time is moved by making what is stored older."""
    limits = TenantLimits(requests_per_minute=3, tokens_per_minute=1000)
    for _ in range(3):
        ticket = ticket_of(await limiter.admit("acme", limits, num_tokens=100))
    key = redis_client.key("{tenant/acme}", "rates")

    async def age_by(seconds: int) -> None:
        stored = await redis_client.execute("HGETALL", key)
        await redis_client.execute("DEL", key)
        for name, value in stored.items():
            text, number = name.decode(), int(value)
            if text in ("first", "lr", "lt"):
                number -= seconds
            elif text not in ("R", "T"):
                text = f"{text[0]}{int(text[1:]) - seconds}"
            await redis_client.execute("HSET", key, text, number)

    await age_by(40)
    assert isinstance(await try_to_admit(limiter, limits), LimitReachedError)
    await age_by(25)
    state = (await limiter.admit("acme", limits, num_tokens=1)).state
    assert state is not None
    assert (state.num_requests, state.num_tokens) == (1, 1)
    # The first request's reservation has left the window; what it took beyond it counts now.
    old = ticket._replace(second=ticket.second - 61)
    limiter.finish(old, num_tokens=5)
    limiter.finish(old, num_tokens=107)
    await limiter.settled()
    state = (await limiter.admit("acme", limits, num_tokens=1)).state
    assert state is not None
    assert (state.num_requests, state.num_tokens) == (2, 9)
    await age_by(1000)
    state = (await limiter.admit("acme", limits, num_tokens=1)).state
    assert state is not None
    assert (state.num_requests, state.num_tokens) == (1, 1)


async def test_leases_end_by_themselves_unless_they_are_renewed(
    redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is moved by making what is stored older."""
    monkeypatch.setattr(limiter_module, "LEASE_S", 600.0)
    monkeypatch.setattr(limiter_module, "RENEW_S", 0.05)
    key = redis_client.key("{tenant/acme}", "running")

    async def end_the_lease() -> None:
        (ticket,) = await redis_client.execute("ZRANGE", key, 0, -1)
        await redis_client.execute("ZADD", key, 1, ticket)

    limits = TenantLimits(concurrent_requests=1)
    dying = TenantLimiter(redis_client, grace_s=300)
    await dying.admit("acme", limits, num_tokens=1)
    living = TenantLimiter(redis_client, grace_s=300)
    assert isinstance(await try_to_admit(living, limits), LimitReachedError)
    await end_the_lease()
    assert isinstance(await try_to_admit(living, limits), Admission)
    async with living.following(), asyncio.timeout(120):
        for _ in range(3):
            await end_the_lease()
            while await redis_client.execute("ZCOUNT", key, 1, 1):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # until it is renewed, which nobody is told
            assert isinstance(await try_to_admit(dying, limits), LimitReachedError)


async def test_an_answer_that_is_late_lifts_no_limit(
    breakable_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = TenantLimits(requests_per_minute=1)
    server = breakable_redis_server
    async with connect(patient_config(server.url)) as redis:
        limiter = TenantLimiter(redis, grace_s=300)
        server.freeze()
        with impatient(redis, 0.3):
            monkeypatch.setattr(limiter_module, "AWAY_AFTER_S", 600.0)
            with pytest.raises(ServiceUnavailableError):
                await limiter.admit("acme", limits, num_tokens=1)
            monkeypatch.setattr(limiter_module, "AWAY_AFTER_S", 0.0)
            assert await limiter.admit("acme", limits, num_tokens=1) == (None, None)
        server.thaw()


async def test_without_redis_requests_run_for_a_while_and_are_counted(
    breakable_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = TenantLimits(requests_per_minute=1)
    server = breakable_redis_server
    async with connect(patient_config(server.url)) as redis:
        limiter = TenantLimiter(redis, grace_s=300)
        strict = TenantLimiter(redis, grace_s=0)
        ticket = ticket_of(await limiter.admit("acme", limits, num_tokens=1))
        server.kill()
        for _ in range(3):
            assert await limiter.admit("acme", limits, num_tokens=1) == (None, None)
        limiter.finish(ticket, num_tokens=1)
        await limiter.settled()
        assert limiter.num_unlimited == 3
        assert "NOT held" in caplog.text
        with pytest.raises(ServiceUnavailableError):
            await strict.admit("acme", limits, num_tokens=1)
        server.start()
        async with asyncio.timeout(120):
            while not isinstance(await try_to_admit(limiter, limits), LimitReachedError):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert "held again" in caplog.text
