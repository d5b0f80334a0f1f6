"""Speculative decoding: which sequences of a step guess their next tokens, and how many.

Guessed is what a grammar leaves no choice about, else what followed the same tokens before.
A guess costs nothing but time: the model is asked about all of its tokens in one step, each
position is sampled as it would be alone, by its own random number, and what differs from the guess
ends it. The output is that of steps without guesses, greedy or sampled.
"""

from cluster.config import SpeculativeConfig
from cluster.types import PRIORITY_BATCH
from models.engine.batch import Batch, Draft
from models.engine.batch_share import TokenCost
from models.engine.block_manager import BlockManager
from models.engine.draft_price import DraftPrice
from models.engine.sequence import Sequence
from models.engine.sequence_guesses import SequenceGuesses
from models.grammar.compiler import GrammarMatcher, GrammarStepError

# Entries that a step makes in indexes, of all sequences together: a long prompt, which needs many,
# holds up no step for more than about two milliseconds.
_MAX_NEW_ENTRIES = 4096
# Where guesses seem to pay for nobody, a few tokens are tried after so many steps, to know, as if
# they had this price.
_TRIAL_PERIOD = 64
_TRIAL_PRICE = 0.1


class Speculator:
    """Adds guesses to steps that are otherwise chosen, from what is left of their budget."""

    def __init__(
        self,
        config: SpeculativeConfig,
        blocks: BlockManager,
        *,
        max_num_rows: int,
        token_cost: TokenCost,
    ) -> None:
        """`max_num_rows`: sequences and guessed tokens of a step, together. `token_cost`: what is
        known of the time that tokens take."""
        self._config = config
        self._blocks = blocks
        self._max_num_rows = max_num_rows
        self._price = DraftPrice(token_cost)
        self._num_entries_left = 0
        self._num_idle_steps = 0  # in which no guess would have paid
        # Totals since the start.
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    def add_drafts(self, batch: Batch) -> None:
        """Let sequences that are to decode one token guess more. Only blocks that are free are
        taken for it, and only until the step is recorded."""
        num_left = min(batch.num_tokens_left, self._max_num_rows - batch.num_sequences)
        if not batch.singles or num_left <= 0:
            return
        price = self._price_of(len(batch.singles))
        if price >= 1.0:
            self._num_idle_steps += 1
            if self._num_idle_steps < _TRIAL_PERIOD:
                return
            price, num_left = _TRIAL_PRICE, min(num_left, 1 + len(batch.singles) // 8)
        self._num_idle_steps = 0
        self._num_entries_left = _MAX_NEW_ENTRIES
        drafts: list[Draft] = []
        for sequence in batch.singles:
            if num_left <= 0:
                break
            if batch.num_online_tokens and sequence.priority >= PRIORITY_BATCH:
                break  # in order of priority: those that follow share what online ones leave them
            draft = self._try_draft(sequence, price, num_left)
            if draft is not None:
                drafts.append(draft)
                num_left -= len(draft.token_ids)
        if drafts:
            batch.guess(drafts)

    def would_guess(self, batch: Batch) -> bool:
        """Whether one of its sequences is about to guess, as far as is known without the tokens
        that the batch chooses."""
        if not batch.singles:
            return False
        price = self._price_of(len(batch.singles))
        if price >= 1.0:
            return False
        self._num_entries_left = _MAX_NEW_ENTRIES
        return any(self._guess(sequence, price, 1) for sequence in batch.singles)

    def observe(self, batch: Batch, *, seconds: float) -> None:
        """A step was recorded that took so long."""
        num_guessed = 0
        for draft in batch.drafts:
            num_guessed += len(draft.token_ids)
            self.num_accepted_tokens += draft.num_accepted
            sequence = draft.sequence
            assert sequence.guesses is not None, "it has guessed"
            sequence.guesses.record.observe(
                len(draft.token_ids), draft.num_accepted, sequence.num_tokens
            )
        self.num_drafts += len(batch.drafts)
        self.num_draft_tokens += num_guessed
        num_sequences = len(batch.singles) + len(batch.drafts)
        if num_sequences and not batch.chunks and batch.layer_slice is None:
            self._price.observe(
                num_sequences=num_sequences, num_guessed=num_guessed, seconds=seconds
            )

    def _price_of(self, num_sequences: int) -> float:
        return self._price.of(num_sequences) if self._config.adaptive else 0.0

    def _try_draft(self, sequence: Sequence, price: float, num_left: int) -> Draft | None:
        guess = self._guess(sequence, price, num_left)
        matchers: list[GrammarMatcher] = []
        if sequence.matcher is not None and guess:
            matchers = _following(sequence.matcher, guess)
            guess = guess[: len(matchers)]
        if not guess:
            return None
        num_computed = sequence.num_computed_tokens
        copies = self._blocks.try_extend(
            sequence.block_table, num_computed, num_computed + 1 + len(guess)
        )
        if copies is None:
            return None
        assert not copies, "the sequence's last block is its own, and the others are new"
        return Draft(sequence, guess, matchers)

    def _guess(self, sequence: Sequence, price: float, num_left: int) -> list[int]:
        """The sequence's next tokens; none where it has no idea, or may have none."""
        if not _may_guess(sequence):
            return []
        # The step's own token comes in any case, and no more than these after it.
        num_left = min(num_left, sequence.max_num_tokens - sequence.num_tokens - 1)
        num_left = min(num_left, self._config.num_speculative_tokens)
        if sequence.guesses is None:
            sequence.guesses = SequenceGuesses(self._config)
        if self._config.adaptive:
            num_worth = sequence.guesses.record.worth(price, sequence.num_tokens)
            num_left = num_left if num_worth is None else min(num_left, num_worth)
        if num_left <= 0:
            return []
        if sequence.matcher is not None:
            forced = sequence.matcher.forced_tokens()
            if forced:
                return forced[:num_left]
        lookup = sequence.guesses.lookup
        if self._num_entries_left > 0:
            lookup.extend(sequence.tokens(lookup.num_tokens, sequence.num_tokens))
            self._num_entries_left -= lookup.enter(self._num_entries_left)
        return lookup.guess(num_left)


def _may_guess(sequence: Sequence) -> bool:
    """Not before its first token, for which forks and prompt logprobs may be wanted."""
    return bool(sequence.output_token_ids) and sequence.params.beam is None


def _following(matcher: GrammarMatcher, guess: list[int]) -> list[GrammarMatcher]:
    """Where the grammar stands after each token of a guess, up to one that it does not allow, or
    after which it allows no further."""
    matchers: list[GrammarMatcher] = []
    for token_id in guess[: matcher.count_allowed(guess)]:
        matcher = matcher.fork()
        try:
            matcher.accept(token_id)
        except GrammarStepError:
            break
        if matcher.is_finished:
            break
        matchers.append(matcher)
    return matchers
