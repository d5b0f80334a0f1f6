"""Which prompts are long, and how many of their tokens a step with streams may still take."""

from cluster.types import PRIORITY_BATCH
from models.engine.batch import Batch
from models.engine.prompt_share import PromptShare
from models.engine.scheduler_limits import SchedulerLimits
from models.engine.sequence import Sequence


class LongPrompts:
    """Of one engine: those that need several steps, beside sequences that need one token."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._share = PromptShare(
            limits.max_prompt_slowdown,
            min_tokens=limits.min_prompt_tokens,
            max_tokens=limits.max_num_batched_tokens,
        )

    def num_tokens_left(self, batch: Batch, sequence: Sequence, num_cached: int) -> int:
        """Of the step, for a sequence that begins with so many tokens cached."""
        num_left = batch.num_tokens_left
        is_free = not batch.singles or sequence.priority >= PRIORITY_BATCH
        if is_free or not self._is_long(sequence, num_cached):
            return num_left
        if batch.max_long_tokens is None:
            batch.max_long_tokens = self._share.num_tokens()
        return min(num_left, max(0, batch.max_long_tokens - batch.num_long_tokens))

    def first_tokens(self, batch: Batch, sequence: Sequence, num_cached: int) -> int:
        """The same of a waiting sequence. It may begin where other long prompts have taken all that
        was for them: those behind it need not wait for it."""
        least = min(self._limits.min_prompt_tokens, batch.num_tokens_left)
        return max(least, self.num_tokens_left(batch, sequence, num_cached))

    def note(self, batch: Batch, sequence: Sequence, num_new_tokens: int) -> None:
        """The step computes so many of the sequence's tokens."""
        if self._is_long(sequence, sequence.num_cached_tokens):
            batch.num_long_tokens += num_new_tokens

    def observe(self, batch: Batch, seconds: float) -> None:
        """A step was computed. What it tells counts where it had streams, perhaps long prompts, and
        nothing else."""
        has_streams = bool(batch.singles or batch.drafts)
        has_others = batch.num_long_tokens != batch.num_chunk_tokens or batch.num_batch_tokens > 0
        if has_streams and not has_others:
            self._share.observe(num_tokens=batch.num_long_tokens, seconds=seconds)

    def _is_long(self, sequence: Sequence, num_cached: int) -> bool:
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        num_to_read = sequence.num_tokens - num_cached
        return num_left > 1 and num_to_read > self._limits.max_num_batched_tokens
