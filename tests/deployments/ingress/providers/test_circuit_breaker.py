import pytest

from cluster.errors import BadRequestError, ServiceUnavailableError
from deployments.ingress.providers.circuit_breaker import (
    FAULTS_TO_OPEN,
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    CircuitBreaker,
)
from deployments.ingress.providers.provider_errors import ProviderDownError, ProviderTimeoutError


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("far", clock=clock)


def fail(breaker: CircuitBreaker, error: Exception | None = None) -> None:
    error = error or ProviderDownError("down")
    with pytest.raises(type(error)), breaker.attempt():
        raise error


def open_up(breaker: CircuitBreaker) -> None:
    for _ in range(FAULTS_TO_OPEN):
        fail(breaker)


def is_open(breaker: CircuitBreaker) -> bool:
    try:
        with breaker.attempt():
            raise KeyboardInterrupt  # neither a success nor a fault
    except ServiceUnavailableError:
        return True
    except KeyboardInterrupt:
        return False


def test_faults_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    for _ in range(FAULTS_TO_OPEN - 1):
        fail(breaker, ProviderTimeoutError("slow"))
    assert not is_open(breaker)
    fail(breaker)
    assert is_open(breaker)


def test_a_success_or_a_refusal_between_them_starts_the_count_again(
    breaker: CircuitBreaker,
) -> None:
    for _ in range(3):
        for _ in range(FAULTS_TO_OPEN - 1):
            fail(breaker)
        with breaker.attempt():
            pass
        for _ in range(FAULTS_TO_OPEN - 1):
            fail(breaker)
        fail(breaker, BadRequestError("no"))
    assert not is_open(breaker)


def test_after_a_pause_one_request_tries(breaker: CircuitBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now_s += FIRST_PAUSE_S
    with breaker.attempt():
        assert is_open(breaker), "one at a time"
    assert not is_open(breaker)


def test_an_answer_that_has_begun_lets_others_in(breaker: CircuitBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now_s += FIRST_PAUSE_S
    with breaker.attempt() as note_success:
        note_success()
        assert not is_open(breaker)


def test_a_probe_that_fails_makes_the_pause_longer(breaker: CircuitBreaker, clock: Clock) -> None:
    open_up(breaker)
    pause_s = FIRST_PAUSE_S
    for _ in range(8):
        clock.now_s += pause_s
        fail(breaker)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
        clock.now_s += pause_s - 0.1
        assert is_open(breaker)
        clock.now_s += 0.1 - pause_s
    assert pause_s == MAX_PAUSE_S


def test_a_probe_whose_client_leaves_decides_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now_s += FIRST_PAUSE_S
    assert not is_open(breaker)  # the probe, which leaves
    with breaker.attempt():
        pass
    assert not is_open(breaker)


def test_a_refused_request_knows_when_to_come_again(breaker: CircuitBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now_s += 2.0
    with pytest.raises(ServiceUnavailableError) as raised, breaker.attempt():
        pass
    assert raised.value.retry_after_s == FIRST_PAUSE_S - 2.0
