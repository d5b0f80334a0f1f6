"""The generator is deterministic, and its two splits share no content word."""

import itertools
import random

from models.demo.dialogues import Dialogue, generate
from models.demo.words import Words, is_held_out


def first(count: int, *, seed: int, held_out: bool) -> list[Dialogue]:
    return list(itertools.islice(generate(seed, held_out=held_out), count))


def test_the_same_seed_gives_the_same_dialogues() -> None:
    assert first(50, seed=7, held_out=False) == first(50, seed=7, held_out=False)
    assert first(50, seed=7, held_out=False) != first(50, seed=8, held_out=False)


def test_training_and_held_out_words_are_disjoint() -> None:
    drawn: dict[bool, set[str]] = {}
    for held_out in (False, True):
        words = Words(random.Random(1), held_out=held_out)
        makers = (words.pseudo, words.noun, words.code, words.phone, words.date, words.decimal)
        drawn[held_out] = {make() for make in makers for _ in range(300)}
        assert all(is_held_out(word) == held_out for word in drawn[held_out])
    assert not drawn[False] & drawn[True]


def test_every_answer_about_passages_can_be_copied_from_them() -> None:
    for dialogue in first(400, seed=3, held_out=True):
        if dialogue.kind == "context":
            context = dialogue.messages[0]["content"]
            assert dialogue.messages[-1]["content"].removesuffix(".") in context
            assert all(value in context for value in dialogue.values)


def test_every_dialogue_ends_with_the_assistant() -> None:
    for dialogue in first(300, seed=5, held_out=False):
        assert dialogue.messages[-1]["role"] == "assistant"
