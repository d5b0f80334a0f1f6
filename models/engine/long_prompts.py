"""Which prompts are long, and how many of their tokens a step with streams may still take."""

from cluster.types import PRIORITY_BATCH
from models.engine.batch import Batch
from models.engine.layered_chunk import LayeredChunk
from models.engine.prompt_share import PromptShare
from models.engine.scheduler_limits import SchedulerLimits
from models.engine.sequence import Sequence

# Chunks that pass the layers bit by bit. More tokens make each of them cheaper, but a step takes
# whole layers of all of them: so many that it can take two or more, where that leaves enough.
_MIN_LAYERS_OF_STEP = 2
_CHUNK_MULTIPLE = 16
_MAX_CHUNK_TOKENS = 256


class LongPrompts:
    """Of one engine: those that need several steps, beside sequences that need one token."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._share = PromptShare(
            limits.max_prompt_slowdown,
            min_tokens=1 if limits.num_layers_apart else limits.min_prompt_tokens,
            max_tokens=limits.max_num_batched_tokens,
        )
        self._chunk: LayeredChunk | None = None  # the latest one that began

    def num_tokens_left(self, batch: Batch, sequence: Sequence, num_cached: int) -> int:
        """Of the step, for a sequence that begins with so many tokens cached."""
        num_left = batch.num_tokens_left
        if _is_free(batch, sequence) or not self._is_long(sequence, num_cached):
            return num_left
        allowed = self._allowed(batch)
        if allowed <= 0:
            return 0
        return min(num_left, max(int(allowed), self._limits.min_prompt_tokens))

    def first_tokens(self, batch: Batch, sequence: Sequence, num_cached: int) -> int:
        """The same of a waiting sequence. It may begin where other long prompts have taken all that
        was for them: those behind it need not wait for it."""
        least = min(self._limits.min_prompt_tokens, batch.num_tokens_left)
        return max(least, self.num_tokens_left(batch, sequence, num_cached))

    def is_layered(self, batch: Batch, sequence: Sequence) -> bool:
        """Whether a running sequence's next tokens pass a few layers in each step."""
        return (
            self._limits.num_layers_apart > 0
            and self._limits.max_prompt_slowdown is not None
            and not _is_free(batch, sequence)
            and self._is_long(sequence, sequence.num_cached_tokens)
            and not sequence.wants_prompt_logprobs
        )

    def next_chunk_tokens(self, batch: Batch, sequence: Sequence) -> int:
        """How many tokens of such a sequence pass layers in this step; 0: none, because another's
        do, or because the step has no time left for them."""
        allowed = min(self._allowed(batch), batch.num_tokens_left)
        if allowed <= 0 or batch.layer_slice is not None:
            return 0
        chunk = self._chunk
        if chunk is not None and chunk.is_under_way:
            return chunk.num_tokens if chunk.sequence is sequence else 0
        fitting = int(allowed * self._limits.num_layers_apart / _MIN_LAYERS_OF_STEP)
        fitting = min(fitting, _MAX_CHUNK_TOKENS, self._limits.max_num_batched_tokens)
        fitting = max(_CHUNK_MULTIPLE, fitting - fitting % _CHUNK_MULTIPLE)
        return min(fitting, sequence.num_tokens - 1 - sequence.num_computed_tokens)

    def add_layers(self, batch: Batch, sequence: Sequence, num_tokens: int) -> None:
        """Put the next layers of so many tokens, whose blocks the sequence has, into the step."""
        chunk = self._chunk
        if chunk is None or not chunk.is_under_way:
            chunk = LayeredChunk(sequence, num_tokens, num_layers=self._limits.num_layers_apart)
            self._chunk = chunk
        assert chunk.sequence is sequence, "one at a time"
        assert chunk.num_tokens == num_tokens, "as `next_chunk_tokens` says"
        fitting = int(self._allowed(batch) * chunk.num_layers / num_tokens)
        batch.layer_slice = layer_slice = chunk.advance(max(1, fitting))
        if layer_slice.is_last:
            batch.unpublished.append((sequence, sequence.num_computed_tokens + num_tokens))

    def note(self, batch: Batch, sequence: Sequence, num_new_tokens: int) -> None:
        """The step computes so many of the sequence's tokens."""
        if self._is_long(sequence, sequence.num_cached_tokens):
            batch.num_long_chunk_tokens += num_new_tokens

    def observe(self, batch: Batch, seconds: float) -> None:
        """A step was computed. What it tells counts where it had streams, perhaps long prompts, and
        nothing else."""
        has_streams = bool(batch.singles or batch.drafts)
        has_others = batch.num_long_chunk_tokens != batch.num_chunk_tokens
        if has_streams and not has_others and batch.num_batch_tokens == 0:
            self._share.observe(num_tokens=batch.num_long_tokens, seconds=seconds)

    def _allowed(self, batch: Batch) -> float:
        """Tokens of long prompts that the step may still take."""
        if batch.max_long_tokens is None:
            batch.max_long_tokens = self._share.num_tokens()
        return batch.max_long_tokens - batch.num_long_tokens

    def _is_long(self, sequence: Sequence, num_cached: int) -> bool:
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        num_to_read = sequence.num_tokens - num_cached
        return num_left > 1 and num_to_read > self._limits.max_num_batched_tokens


def _is_free(batch: Batch, sequence: Sequence) -> bool:
    """Whether no stream waits for the sequence's tokens."""
    return not batch.singles or sequence.priority >= PRIORITY_BATCH
