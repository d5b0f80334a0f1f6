"""What long prompts may take of the steps of streams."""

import random
from collections.abc import Callable

import pytest

from models.engine.prompt_share import PromptShare

ALONE_S = 0.006


def share(max_slowdown: float | None = 0.8, *, min_tokens: int = 16) -> PromptShare:
    return PromptShare(max_slowdown, min_tokens=min_tokens, max_tokens=512)


def read(
    prompt_share: PromptShare,
    prompt_len: int,
    added_s: Callable[[int, int], float],
    *,
    alone_s: float = ALONE_S,
) -> list[float]:
    """The seconds of each step until a prompt is read; `added_s` of (tokens, context before)."""
    steps, done = [], 0
    while done < prompt_len:
        num_tokens = min(prompt_len - done, prompt_share.num_tokens())
        seconds = alone_s + (added_s(num_tokens, done) if num_tokens else 0.0)
        prompt_share.observe(num_tokens=num_tokens, seconds=seconds)
        steps.append(seconds)
        done += num_tokens
        assert len(steps) < 100_000, "it comes to an end"
    return steps


def attending(num_tokens: int, context: int) -> float:
    """40 microseconds a token, and as much again for every 10,000 tokens of context."""
    return num_tokens * 4e-5 * (1 + (context + num_tokens / 2) / 10_000)


@pytest.mark.parametrize("prompt_len", [4096, 8192, 32_768])
def test_steps_stay_within_the_share_while_the_context_grows(prompt_len: int) -> None:
    steps = read(share(), prompt_len, attending)
    assert max(steps) <= 1.9 * ALONE_S
    # And little of the share is left unused: of the time that is not the streams' own.
    assert sum(steps) - ALONE_S * len(steps) >= 0.6 * 0.8 * ALONE_S * len(steps)


def test_a_second_prompt_begins_with_what_the_first_one_taught() -> None:
    prompt_share = share()
    read(prompt_share, 32_768, attending)
    steps = read(prompt_share, 8192, attending)
    assert max(steps) <= 1.9 * ALONE_S


def test_steps_that_something_else_makes_long_change_little() -> None:
    chance = random.Random(0)

    def noisy(num_tokens: int, context: int) -> float:
        return attending(num_tokens, context) + (0.1 if chance.random() < 0.02 else 0.0)

    steps = read(share(), 8192, noisy)
    quiet = read(share(), 8192, attending)
    assert len(steps) < 2 * len(quiet)


def test_a_step_of_streams_alone_that_something_else_makes_long_changes_little() -> None:
    prompt_share = share()
    read(prompt_share, 4096, attending)
    prompt_share.observe(num_tokens=0, seconds=50 * ALONE_S)
    assert max(read(prompt_share, 8192, attending)) <= 2.2 * ALONE_S


def test_what_disturbs_several_steps_is_soon_forgotten() -> None:
    prompt_share = share()
    read(prompt_share, 4096, attending)
    for _ in range(8):
        prompt_share.observe(num_tokens=0, seconds=20 * ALONE_S)
    steps = read(prompt_share, 8192, attending)
    assert sum(step > 2 * ALONE_S for step in steps) < 4
    assert max(steps) < 3 * ALONE_S


def test_more_streams_are_noticed_while_a_prompt_is_read() -> None:
    prompt_share = share()
    read(prompt_share, 8192, attending)
    longer = read(prompt_share, 8192, attending, alone_s=3 * ALONE_S)
    later = longer[len(longer) // 2 :]
    assert sorted(later)[len(later) // 2] > 1.4 * 3 * ALONE_S


def test_where_tokens_cost_nothing_a_prompt_soon_has_whole_steps() -> None:
    steps = read(share(), 8192, lambda num_tokens, context: 0.0)
    assert len(steps) < 30


def test_a_prompt_is_read_even_where_a_few_tokens_take_longer_than_the_share() -> None:
    steps = read(share(min_tokens=16), 600, lambda num_tokens, context: 1.0)
    assert len(steps) < 50


def test_a_prompt_is_read_even_where_streams_are_never_alone() -> None:
    prompt_share = share()
    assert sum(prompt_share.num_tokens() for _ in range(100)) > 1000


def test_without_a_limit_all_there_is_room_for_is_the_prompts() -> None:
    assert share(None).num_tokens() == 512
