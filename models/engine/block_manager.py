"""Which KV block is whose: reference counts, prefix reuse, copy-on-write. Integers only.

A block is owned while some block table holds a reference to it, and free otherwise. A free block
may still be cached: its content stays until the block is needed, and a sequence with the same
prefix takes it back by its hash. Free blocks are reused in this order: those without a hash, then
the least recently freed.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence

BlockCopy = tuple[int, int]  # source, destination


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} tokens is not a KV cache")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def match_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached beginning of a hash chain."""
        blocks = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def try_admit(self, cached_blocks: list[int], num_tokens: int) -> list[int] | None:
        """A new block table for `num_tokens` tokens that begins with `cached_blocks`.

        None, and nothing changed, when the blocks do not suffice.
        """
        if self.num_lacking(cached_blocks, num_tokens) > 0:
            return None
        self.share(cached_blocks)
        num_fresh = self._num_blocks_for(num_tokens) - len(cached_blocks)
        return cached_blocks + [self._take() for _ in range(num_fresh)]

    def num_lacking(self, cached_blocks: list[int], num_tokens: int) -> int:
        """How many more free blocks `try_admit` would need; none where it is not positive."""
        num_taken_back = sum(self._ref_counts[block] == 0 for block in cached_blocks)
        num_fresh = self._num_blocks_for(num_tokens) - len(cached_blocks)
        return num_fresh + num_taken_back - len(self._free)

    def count_released(self, block_table: list[int], released: Counter[int]) -> int:
        """How many blocks would become free if this table gave up its references after those that
        `released` counts, to which they are added."""
        num_freed = 0
        for block in block_table:
            released[block] += 1
            num_freed += released[block] == self._ref_counts[block]
        return num_freed

    def try_extend(
        self, block_table: list[int], num_computed_tokens: int, num_tokens: int
    ) -> list[BlockCopy] | None:
        """Make tokens `num_computed_tokens … num_tokens-1` writable: append blocks to the table,
        and replace by copies those that others hold too.

        Returns the copies to make before writing; None, and nothing changed, when the blocks do
        not suffice.
        """
        first_written = num_computed_tokens // self.block_size
        shared = [
            index
            for index in range(first_written, len(block_table))
            if self._ref_counts[block_table[index]] > 1
        ]
        num_fresh = max(0, self._num_blocks_for(num_tokens) - len(block_table))
        if num_fresh + len(shared) > len(self._free):
            return None
        copies = []
        for index in shared:
            source = block_table[index]
            block_table[index] = self._take()
            self._ref_counts[source] -= 1
            copies.append((source, block_table[index]))
        block_table.extend(self._take() for _ in range(num_fresh))
        return copies

    def shrink(self, block_table: list[int], num_tokens: int) -> None:
        """Give back the last blocks, which the first `num_tokens` tokens do not need."""
        num_kept = self._num_blocks_for(num_tokens)
        if num_kept < len(block_table):
            rest = block_table[num_kept:]
            del block_table[num_kept:]
            self.release(rest)

    def publish(self, block: int, block_hash: bytes) -> None:
        """Offer an owned, full block for reuse. The first block of a given content wins."""
        assert self._ref_counts[block] > 0, "only an owned block has content"
        if self._hash_of[block] is None and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference on each block."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1

    def release(self, block_table: list[int]) -> None:
        """Give back a table's references and empty it. The tail of a prefix is forgotten first."""
        for block in reversed(block_table):
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, "released more often than taken"
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)
        block_table.clear()

    def check(self, block_tables: AbstractSequence[AbstractSequence[int]]) -> None:
        """Assert that the books agree with the tables in use: owned + free = total."""
        counts = [0] * self.num_blocks
        for table in block_tables:
            assert len(set(table)) == len(table), "a table holds a block twice"
            for block in table:
                counts[block] += 1
        assert counts == self._ref_counts, "reference counts differ from the tables"
        owned = sum(count > 0 for count in counts)
        assert owned + len(self._free) == self.num_blocks, "a block is lost"
        assert all(self._hash_of[block] == h for h, block in self._block_of.items())

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _take(self) -> int:
        """Own the block that is missed least; its former content is forgotten."""
        block, _ = self._free.popitem(last=False)
        self._ref_counts[block] = 1
        block_hash = self._hash_of[block]
        if block_hash is not None:
            del self._block_of[block_hash]
            self._hash_of[block] = None
        return block
