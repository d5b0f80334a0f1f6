"""How much may wait, and when the refused should return."""

import pytest

from cluster.errors import ServiceUnavailableError
from cluster.types import Request, SamplingParams
from models.engine.admission import Admission


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def request(name: str, num_tokens: int = 4) -> Request:
    return Request(
        request_id=name, prompt_token_ids=[1] * num_tokens, sampling_params=SamplingParams()
    )


def test_more_requests_than_may_wait_are_refused_until_one_starts() -> None:
    admission = Admission(max_requests=2, max_tokens=100)
    admission.admit(request("a"))
    admission.admit(request("b"))
    with pytest.raises(ServiceUnavailableError, match="2 requests are waiting"):
        admission.admit(request("c"))
    admission.start("a")
    admission.admit(request("c"))
    assert admission.num_requests == 2


def test_more_prompt_tokens_than_may_wait_are_refused_with_the_numbers() -> None:
    admission = Admission(max_requests=10, max_tokens=100)
    admission.admit(request("a", 60))
    with pytest.raises(ServiceUnavailableError, match=r"60 prompt tokens.*50.*more than 100"):
        admission.admit(request("b", 50))
    admission.leave("a")
    admission.admit(request("b", 50))


def test_a_request_larger_than_the_queue_may_wait_alone() -> None:
    admission = Admission(max_requests=10, max_tokens=100)
    admission.admit(request("a", 1000))
    with pytest.raises(ServiceUnavailableError):
        admission.admit(request("b", 1))


@pytest.mark.parametrize(
    ("starts_per_s", "retry_after_s"), [(10.0, 2.5), (1.0, 25.0), (1000.0, 1.0), (0.1, 60.0)]
)
def test_the_refused_are_told_when_a_quarter_of_the_queue_will_have_started(
    starts_per_s: float, retry_after_s: float
) -> None:
    clock = Clock()
    admission = Admission(max_requests=100, max_tokens=10**6, clock=clock)
    for k in range(200):
        admission.admit(request(f"before-{k}"))
        clock.now_s += 1 / starts_per_s
        admission.start(f"before-{k}")
    for k in range(100):
        admission.admit(request(f"waiting-{k}"))
    with pytest.raises(ServiceUnavailableError) as caught:
        admission.admit(request("one more"))
    assert caught.value.retry_after_s == pytest.approx(retry_after_s, rel=0.02)


def test_who_leaves_without_having_started_says_nothing_about_the_speed() -> None:
    admission = Admission(max_requests=1, max_tokens=100)
    for k in range(10):
        admission.admit(request(str(k)))
        assert admission.leave(str(k))
    assert not admission.leave("never seen")
    admission.start("never seen")
    admission.admit(request("a"))
    with pytest.raises(ServiceUnavailableError) as caught:
        admission.admit(request("b"))
    assert caught.value.retry_after_s == 1.0
