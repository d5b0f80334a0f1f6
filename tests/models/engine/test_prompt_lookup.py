"""What followed the last tokens before is found, and costs what is new."""

import random

from models.engine.prompt_lookup import PromptLookup


def lookup_of(
    token_ids: list[int], *, min_match: int = 2, max_match: int = 4, complete: bool = True
) -> PromptLookup:
    lookup = PromptLookup(min_match, max_match)
    lookup.extend(token_ids)
    if complete:
        lookup.enter(len(token_ids))
    return lookup


def test_what_followed_the_same_tokens_is_guessed() -> None:
    assert lookup_of([1, 2, 3, 4, 5, 9, 1, 2]).guess(3) == [3, 4, 5]


def test_new_and_few_tokens_have_no_guess() -> None:
    assert lookup_of([1, 2, 3, 4, 5, 6]).guess(3) == []
    for count in range(3):
        assert lookup_of([7] * count).guess(3) == []


def test_the_place_where_most_agrees_wins_and_of_equal_ones_the_latest() -> None:
    text = [8, 1, 2, 50, 9, 1, 2, 60, 7, 1, 2, 70, 8, 1, 2]
    assert lookup_of(text).guess(1) == [50]
    assert lookup_of(text, max_match=2).guess(1) == [70]


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert lookup_of([5, 6, 7, 5, 6, 7, 5, 6]).guess(7) == [7, 5, 6, 7, 5, 6, 7]
    assert lookup_of([4, 4, 4]).guess(5) == [4] * 5


def test_entries_are_made_in_parts_and_no_guess_before_the_last() -> None:
    lookup = lookup_of([1, 2, 3, 4, 5, 9, 1, 2], complete=False)
    assert lookup.guess(3) == []
    assert lookup.enter(4) == 4
    assert lookup.guess(3) == []
    assert lookup.enter(100) == 2
    assert lookup.enter(100) == 0
    assert lookup.guess(3) == [3, 4, 5]
    lookup.extend([3])
    assert lookup.enter(100) == 1
    assert lookup.guess(2) == [4, 5]
    assert lookup.num_tokens == 9


def test_a_text_token_by_token_gives_the_guesses_of_the_whole_and_of_a_plain_search() -> None:
    chance = random.Random(5)
    text = [chance.randrange(4) for _ in range(400)]
    grown = PromptLookup(2, 4)
    for length, token in enumerate(text, 1):
        grown.extend([token])
        grown.enter(8)
        guess = grown.guess(3)
        begun = text[:length]
        assert guess == lookup_of(begun).guess(3)
        places = [p for p in range(2, length) if begun[p - 2 : p] == begun[-2:]][-4:]
        assert bool(guess) == bool(places)
        if places:
            longest = max(places, key=lambda p: (equal(begun, p), p))
            assert guess[0] == begun[longest]


def equal(text: list[int], place: int) -> int:
    return next(
        (n for n in range(min(4, place)) if text[place - 1 - n] != text[-1 - n]), min(4, place)
    )
