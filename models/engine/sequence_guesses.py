"""One sequence's guesses: what they are made of, how they went, how many tokens are worth it."""

import math

from cluster.config import SpeculativeConfig
from models.engine.prompt_lookup import PromptLookup

_FIRST_TRIALS = 2.0
_FIRST_PROBABILITY = 0.6
_REMEMBERED = 0.8  # of what earlier guesses said, per guess
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 256  # tokens


class SequenceGuesses:
    """What is known of one sequence: where its text repeats itself, and how its guesses went."""

    __slots__ = ("lookup", "record")

    def __init__(self, config: SpeculativeConfig) -> None:
        self.lookup = PromptLookup(config.prompt_lookup_min, config.prompt_lookup_max)
        self.record = GuessRecord()


class GuessRecord:
    """How often guesses came true. Where they do not pay it pauses, ever longer, and tries
    again with one token."""

    __slots__ = ("_num_right", "_num_tried", "_pause", "_resumes_at")

    def __init__(self) -> None:
        self._num_right = _FIRST_TRIALS * _FIRST_PROBABILITY  # both fade
        self._num_tried = _FIRST_TRIALS
        self._pause = _FIRST_PAUSE
        self._resumes_at = 0

    @property
    def probability(self) -> float:
        """That the next token of a guess is right where those before it are."""
        return self._num_right / self._num_tried

    def worth(self, price: float, position: int) -> int | None:
        """How many tokens are worth guessing; None: as many as there may be.

        The i-th token of a guess is right with the probability p^i.
        """
        if price >= 1.0:
            return 0
        probability = self.probability
        if probability <= price:
            return int(position >= self._resumes_at)
        if probability >= 1.0:
            return None
        return int(math.log(price) / math.log(probability))

    def observe(self, num_guessed: int, num_accepted: int, position: int) -> None:
        """A guess was verified; its sequence has `position` tokens now."""
        self._num_right = _REMEMBERED * self._num_right + num_accepted
        num_tried = min(num_guessed, num_accepted + 1)
        self._num_tried = _REMEMBERED * self._num_tried + num_tried
        if num_accepted:
            self._pause = _FIRST_PAUSE
        else:
            self._resumes_at = position + self._pause
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
