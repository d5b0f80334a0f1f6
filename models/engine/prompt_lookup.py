"""Prompt lookup: a sequence's last tokens, where they were before, and what followed them there.

An index of one sequence's own tokens, prompt and output. It knows each place by the few tokens
before it, and grows by what is new since it was last asked: a token costs one entry, a guess a few
comparisons, however long the context is.
"""

from array import array

_MAX_PLACES = 4  # that are compared for one guess, the latest first


class PromptLookup:
    """The places of one sequence. `min_match` tokens have to agree for a guess; of several places
    the one where most agree is taken, counted up to `max_match`, and of equal ones the latest."""

    __slots__ = ("_earlier", "_latest", "_max_match", "_min_match", "_token_ids")

    def __init__(self, min_match: int, max_match: int) -> None:
        self._min_match = min_match
        self._max_match = max_match
        self._token_ids: list[int] = []
        # By a hash of the tokens before it: the latest place. Places with equal hashes are chained;
        # tokens are compared anyway, so it does not matter if hashes collide.
        self._latest: dict[int, int] = {}
        self._earlier = array(
            "q", [0] * min_match
        )  # by place: the one before with its hash; 0: none

    @property
    def num_tokens(self) -> int:
        """That it was told of."""
        return len(self._token_ids)

    def extend(self, token_ids: list[int]) -> None:
        """The sequence's next tokens."""
        self._token_ids += token_ids

    def enter(self, max_entries: int) -> int:
        """Enter places up to the last token, which has no follower yet, or so many; returns how
        many there were. An entry takes about half a microsecond."""
        tokens, size, earlier, latest = (
            self._token_ids,
            self._min_match,
            self._earlier,
            self._latest,
        )
        start = len(earlier)
        stop = min(len(tokens), start + max_entries)
        if start >= stop:
            return 0
        for place in range(start, stop):
            key = hash(tuple(tokens[place - size : place]))
            earlier.append(latest.get(key, 0))
            latest[key] = place
        return stop - start

    def guess(self, num_tokens: int) -> list[int]:
        """So many next tokens; none where the last ones are new, or not all places are entered.

        Where the text that followed ends, at the present, the guess goes on with itself: what is
        repeated is guessed to go on being repeated.
        """
        tokens = self._token_ids
        if len(self._earlier) < len(tokens):
            return []
        place = self._find()
        if place == 0:
            return []
        guess = tokens[place : place + num_tokens]
        period = len(tokens) - place
        while len(guess) < num_tokens:
            guess.append(guess[-period])
        return guess

    def _find(self) -> int:
        """The best place; 0: none."""
        tokens = self._token_ids
        best, most = 0, self._min_match - 1
        place = self._latest.get(hash(tuple(tokens[-self._min_match :])), 0)
        for _ in range(_MAX_PLACES):
            if place == 0 or most == self._max_match:
                break
            num_equal = self._num_equal(place)
            if num_equal > most:
                best, most = place, num_equal
            place = self._earlier[place]
        return best

    def _num_equal(self, place: int) -> int:
        """How many tokens before a place agree with the last ones."""
        tokens = self._token_ids
        limit = min(self._max_match, place)
        for count in range(limit):
            if tokens[place - 1 - count] != tokens[-1 - count]:
                return count
        return limit
