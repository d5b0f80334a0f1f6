"""How many tokens are worth guessing follows how often guesses came true, and their price."""

import itertools

from models.engine.sequence_guesses import GuessRecord


def test_those_that_come_true_become_longer_and_those_that_do_not_shorter() -> None:
    record = GuessRecord()
    first = record.worth(0.1, 0)
    assert first is not None
    assert first > 0
    for position in range(10):
        record.observe(8, 8, position)
    many = record.worth(0.1, 100)
    assert many is None or many > 2 * first
    for position in range(20):
        record.observe(8, 0, position)
    assert record.worth(0.1, 20) == 0


def test_a_dear_guess_has_to_be_a_sure_one() -> None:
    record = GuessRecord()
    for position in range(10):
        record.observe(4, 3, position)
    cheap, dear = record.worth(0.02, 50), record.worth(0.7, 50)
    assert cheap is not None
    assert dear is not None
    assert cheap > dear
    assert record.worth(1.0, 50) == 0


def test_after_failures_one_token_is_tried_ever_more_seldom() -> None:
    record = GuessRecord()
    tries = []
    for position in range(2000):
        count = record.worth(0.1, position)
        if count:
            tries.append(position)
            record.observe(count, 0, position)
    pauses = [after - before for before, after in itertools.pairwise(tries[5:])]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 256
    assert len(tries) < 30


def test_one_success_ends_the_pauses() -> None:
    record = GuessRecord()
    for position in range(50):
        record.observe(1, 0, position)
    assert record.worth(0.1, 51) == 0
    record.observe(1, 1, 400)
    count = record.worth(0.1, 401)
    assert count is None or count >= 1
