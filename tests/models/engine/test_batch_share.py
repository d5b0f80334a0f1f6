"""What batch sequences may take of the steps of online requests."""

import pytest

from models.engine.batch_share import BatchShare, TokenCost


def test_the_cost_of_a_token_is_the_slope_and_not_the_whole_step() -> None:
    cost = TokenCost()
    for num_tokens in (1, 4, 9, 2, 30, 7):
        cost.observe(num_tokens, 0.010 + 0.0005 * num_tokens)
    assert cost.seconds == pytest.approx(0.0005)


def test_steps_that_are_all_alike_count_as_if_every_token_cost_its_part() -> None:
    cost = TokenCost()
    for _ in range(5):
        cost.observe(4, 0.020)
    assert cost.seconds == pytest.approx(0.005)


def test_a_machine_whose_steps_changed_is_learned_anew() -> None:
    cost = TokenCost()
    for k in range(200):
        cost.observe(1 + k % 20, 0.001 * (1 + k % 20))
    for k in range(400):
        cost.observe(1 + k % 20, 0.0001 * (1 + k % 20))
    assert cost.seconds == pytest.approx(0.0001, rel=0.05)


def slowdown(*, step_s: float, token_s: float, num_steps: int = 2000) -> tuple[float, int]:
    """How much longer online steps became, and how many batch tokens they took with them."""
    share = BatchShare(0.05)
    for num_tokens in (2, 8, 20, 40):  # what the engine did before
        share.observe(
            num_tokens=num_tokens, num_batch_tokens=0, seconds=step_s + token_s * num_tokens
        )
    online = total = 0.0
    num_taken = 0
    for _ in range(num_steps):
        num_batch = share.num_tokens(100)
        seconds = step_s + token_s * (4 + num_batch)
        share.observe(num_tokens=4 + num_batch, num_batch_tokens=num_batch, seconds=seconds)
        online += step_s + token_s * 4
        total += seconds
        num_taken += num_batch
    return total / online - 1, num_taken


@pytest.mark.parametrize(("step_s", "token_s"), [(0.008, 0.00002), (0.008, 0.001), (0.001, 0.01)])
def test_online_steps_become_longer_by_the_share_and_no_more(step_s: float, token_s: float) -> None:
    longer, num_taken = slowdown(step_s=step_s, token_s=token_s)
    assert 0.035 < longer <= 0.055
    assert num_taken > 0


@pytest.mark.parametrize("first_s", [0.0004, 0.004])
def test_a_first_batch_token_that_costs_more_than_the_others_is_paid_for(first_s: float) -> None:
    """Online steps of one token; any batch token beside it costs `first_s` more."""

    def seconds(num_tokens: int, num_batch: int) -> float:
        return 0.002 + 0.00006 * num_tokens + (first_s if num_batch else 0.0)

    share = BatchShare(0.05)
    for _ in range(20):
        share.observe(num_tokens=256, num_batch_tokens=256, seconds=seconds(256, 256))
    online = total = 0.0
    num_taken = 0
    for _ in range(3000):
        num_batch = share.num_tokens(100)
        took_s = seconds(1 + num_batch, num_batch)
        share.observe(num_tokens=1 + num_batch, num_batch_tokens=num_batch, seconds=took_s)
        online += seconds(1, 0)
        total += took_s
        num_taken += num_batch
    assert 0.02 < total / online - 1 < 0.06
    assert num_taken > 0


def test_tokens_that_cost_nothing_are_not_limited() -> None:
    share = BatchShare(0.05)
    for num_tokens in (2, 8, 20, 40):
        share.observe(num_tokens=num_tokens, num_batch_tokens=0, seconds=0.01)
    assert share.num_tokens(100) == 100


def test_without_a_limit_all_that_is_left_is_the_batchs() -> None:
    assert BatchShare(None).num_tokens(77) == 77


def test_before_anything_is_known_online_requests_are_alone() -> None:
    assert BatchShare(0.05).num_tokens(77) == 0


def test_nothing_is_let_in_where_the_share_is_zero() -> None:
    share = BatchShare(0.0)
    for num_tokens in (2, 8, 20):
        share.observe(num_tokens=num_tokens, num_batch_tokens=0, seconds=0.01 * num_tokens)
    assert share.num_tokens(77) == 0


def test_a_slope_that_noise_may_have_made_is_not_thought_cheap() -> None:
    cost = TokenCost()
    for k in range(40):
        cost.observe(4 + (k % 10 == 0), 0.020 + 0.002 * (k % 3))
    assert cost.seconds is not None
    assert cost.seconds > 0.0003
