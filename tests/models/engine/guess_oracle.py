"""Guesses that are right as often as a test wants, in place of what lookups find."""

import random
from collections.abc import Callable, Iterable

import pytest

from cluster.config import EngineConfig, SpeculativeConfig
from models.engine.prompt_lookup import PromptLookup

ALWAYS = SpeculativeConfig(num_speculative_tokens=5, adaptive=False)

Continue = Callable[[list[int], int], list[int]]


def speculating(config: EngineConfig, guesses: SpeculativeConfig = ALWAYS) -> EngineConfig:
    return config.model_copy(update={"speculative_config": guesses})


def guess_by(monkeypatch: pytest.MonkeyPatch, true_continuation: Continue, *, seed: int) -> None:
    """Guess the truth, of which a part is cut off or spoilt by chance.

    `true_continuation`: of a text, so many tokens or fewer.
    """
    chance = random.Random(seed)

    def guess(lookup: PromptLookup, num_tokens: int) -> list[int]:
        tokens = true_continuation(lookup._token_ids, num_tokens)
        if tokens and chance.random() < 0.4:
            place = chance.randrange(len(tokens))
            tokens[place] = (tokens[place] + 1) % 64  # in every vocabulary
        return tokens[: chance.randint(0, num_tokens)]

    monkeypatch.setattr(PromptLookup, "guess", guess)


def remembering(texts: Iterable[list[int]]) -> Continue:
    """What follows in the first of these texts that begins alike."""
    known = list(texts)

    def continuation(begun: list[int], num_tokens: int) -> list[int]:
        length = len(begun)
        text = next((text for text in known if text[:length] == begun), begun)
        return text[length : length + num_tokens]

    return continuation
