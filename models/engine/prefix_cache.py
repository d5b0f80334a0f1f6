"""Prefix reuse: finds the cached blocks of a sequence's beginning, and offers those it fills."""

from models.engine.block_manager import BlockManager
from models.engine.sequence import Sequence


class PrefixCache:
    """Sequences' hashes on the one side, the block manager's blocks on the other."""

    def __init__(self, blocks: BlockManager, *, is_enabled: bool) -> None:
        self._blocks = blocks
        self._is_enabled = is_enabled

    def find(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the sequence's beginning; at least one token is left to compute."""
        if not self._is_enabled or sequence.wants_prompt_logprobs:
            return []
        num_blocks = (sequence.num_tokens - 1) // self._blocks.block_size
        hashes = sequence.block_hashes(num_blocks, self._blocks.block_size)
        return self._blocks.match_prefix(hashes)

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Offer the blocks that the sequence's first `num_tokens` tokens fill."""
        num_full = num_tokens // self._blocks.block_size
        if not self._is_enabled or num_full <= sequence.num_published_blocks:
            return
        hashes = sequence.block_hashes(num_full, self._blocks.block_size)
        for index in range(sequence.num_published_blocks, num_full):
            self._blocks.publish(sequence.block_table[index], hashes[index])
        sequence.num_published_blocks = num_full
