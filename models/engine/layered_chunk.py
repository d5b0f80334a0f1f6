"""Chunks of long prompts that pass a few layers in each step of streams.

A token attends to all tokens before it, so that with a long context even a few tokens take longer
than the streams' own step: the context's keys and values have to be read for them, whatever their
number. A chunk of many tokens reads them once, and where it passes only some of the layers in each
step, that step is as short as one wants. Its keys and values are complete when it has passed the
last layer. Nothing is chosen there: a prompt's last token comes in a step of its own.
"""

from dataclasses import dataclass

from models.engine.sequence import Sequence, SequenceStatus
from models.engine.step_inputs import StepInputs


class LayeredChunk:
    """A running sequence's next tokens, on their way through the layers."""

    def __init__(self, sequence: Sequence, num_tokens: int, *, num_layers: int) -> None:
        """`num_layers`: the model's. The blocks for the tokens are the sequence's already."""
        self.sequence = sequence
        self.num_tokens = num_tokens
        self.num_layers = num_layers
        self.num_passed = 0  # of the layers, after the steps that were chosen
        self.inputs: StepInputs | None = None  # of the tokens, once they were made
        self._block_table = sequence.block_table  # a new list whenever it is admitted again
        self._num_before = sequence.num_computed_tokens

    @property
    def is_under_way(self) -> bool:
        """Whether there is more to compute of it, and the sequence has lost nothing meanwhile."""
        sequence = self.sequence
        return (
            self.num_passed < self.num_layers
            and sequence.status is SequenceStatus.RUNNING
            and sequence.block_table is self._block_table
            and sequence.num_computed_tokens == self._num_before
        )

    def advance(self, num_layers: int) -> "LayerSlice":
        """Let it pass up to so many more layers."""
        first = self.num_passed
        self.num_passed = min(self.num_layers, first + num_layers)
        return LayerSlice(self, first, self.num_passed)


@dataclass(frozen=True, slots=True)
class LayerSlice:
    """The layers of a chunk that one step computes: `first_layer … stop_layer - 1`."""

    chunk: LayeredChunk
    first_layer: int
    stop_layer: int

    @property
    def is_first(self) -> bool:
        return self.first_layer == 0

    @property
    def is_last(self) -> bool:
        return self.stop_layer == self.chunk.num_layers

    @property
    def num_tokens(self) -> float:
        """As many would pass all layers in the same time."""
        chunk = self.chunk
        return chunk.num_tokens * (self.stop_layer - self.first_layer) / chunk.num_layers
