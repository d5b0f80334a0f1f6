"""What a guessed token costs a step, as the probability from which on it pays.

A step of n sequences brings n tokens in the time T. A guessed token that makes it longer by c is
worth that if it comes true with a probability above n c / T, its price: for this share of a token
the same time was to be had without it. Alone on a machine that waits for memory a guess costs next
to nothing; in a batch that keeps the machine busy it costs nearly a token.
"""

from models.engine.batch_share import TokenCost

_FIRST_PRICE = 0.1  # of a guess for one sequence, before anything was measured
_LEAST_PRICE = 0.02  # what is measured is never so exact
_PLAIN_MEMORY, _GUESS_MEMORY = 0.9, 0.98  # of the weight of earlier steps, per step of the kind
_TRUSTED_TOKENS = 32.0  # guessed tokens, after which their own cost counts for more than others'


class DraftPrice:
    """Learned from the steps of one engine."""

    def __init__(self, token_cost: TokenCost) -> None:
        """`token_cost`: of any token, as others learn it from the same steps; what is believed of
        guessed ones to begin with."""
        self._token_cost = token_cost
        # By the bits of the number of sequences, so that those within a factor of two are one kind:
        # the mean time of steps that decode without guessing, and the weight it has.
        self._plain: dict[int, tuple[float, float]] = {}
        self._added_s = 0.0  # by guessed tokens,
        self._num_guessed = 0.0  # of which there were so many; both fade

    def of(self, num_sequences: int) -> float:
        """Of one guessed token in a step of so many decoding sequences: the probability from which
        on it pays. From 1 on none does."""
        plain = self._plain.get(num_sequences.bit_length())
        if plain is None:
            return _FIRST_PRICE * num_sequences
        token_s = self._token_cost.seconds or 0.0
        added_s = self._added_s + _TRUSTED_TOKENS * token_s
        cost_s = added_s / (self._num_guessed + _TRUSTED_TOKENS)
        return max(_LEAST_PRICE, num_sequences * cost_s / plain[0])

    def observe(self, *, num_sequences: int, num_guessed: int, seconds: float) -> None:
        """A step was computed that had nothing but so many decoding sequences and their guesses."""
        kind = num_sequences.bit_length()
        mean_s, weight = self._plain.get(kind, (0.0, 0.0))
        if not num_guessed:
            weight = _PLAIN_MEMORY * weight + 1.0
            self._plain[kind] = mean_s + (seconds - mean_s) / weight, weight
        elif weight:
            self._added_s = _GUESS_MEMORY * self._added_s + seconds - mean_s
            self._num_guessed = _GUESS_MEMORY * self._num_guessed + num_guessed
