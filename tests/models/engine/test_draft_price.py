"""The price of a guess is the share of a token that its time would have brought anyway."""

import pytest

from models.engine.batch_share import TokenCost
from models.engine.draft_price import DraftPrice


def test_before_anything_is_known_a_guess_is_cheap_for_few() -> None:
    price = DraftPrice(TokenCost())
    assert price.of(1) == pytest.approx(0.1)
    assert price.of(20) > 1


@pytest.mark.parametrize(("token_s", "dear"), [(0.0002, False), (0.001, True)])
def test_what_guesses_add_to_steps_is_learned(token_s: float, *, dear: bool) -> None:
    """Steps of 10 ms; a token more takes 0.2 ms, or 1 ms."""
    price = DraftPrice(TokenCost())
    for _ in range(100):
        for num_sequences in (1, 16):
            price.observe(num_sequences=num_sequences, num_guessed=0, seconds=0.01)
            price.observe(num_sequences=num_sequences, num_guessed=8, seconds=0.01 + 8 * token_s)
    assert price.of(1) == pytest.approx(token_s / 0.01, rel=0.15)
    assert (price.of(16) > 1) == dear


def test_the_cost_of_any_token_is_believed_until_guesses_have_shown_theirs() -> None:
    cost = TokenCost()
    price = DraftPrice(cost)
    for num_tokens in (1, 200, 1, 300, 1, 1):
        cost.observe(num_tokens, 0.01 + 0.001 * num_tokens)
    price.observe(num_sequences=1, num_guessed=0, seconds=0.011)
    assert price.of(1) == pytest.approx(0.001 / 0.011, rel=0.2)


def test_noise_makes_no_guess_free() -> None:
    price = DraftPrice(TokenCost())
    price.observe(num_sequences=1, num_guessed=0, seconds=0.01)
    for _ in range(50):
        price.observe(num_sequences=1, num_guessed=8, seconds=0.009)
    assert 0 < price.of(1) < 0.05
