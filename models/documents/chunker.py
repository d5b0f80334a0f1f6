"""From blocks to chunks: passages of at most so many tokens that end where the text pauses.

Atoms are put together until a chunk is full. It then ends at the best boundary of its second half
(a section may end in its second quarter), and the next one starts so far before that end as the
overlap says, at a sentence if there is one, but never before the section's heading. The last two
chunks share what is left, so that none is tiny.

Guaranteed: `text[chunk.start:chunk.end] == chunk.text`; every character that is not white space is
in a chunk; the same text gives the same chunks, however it comes in blocks' order; no chunk has
more tokens than `ChunkSettings.capacity`, as the model itself counts them.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate

import tokenizers

from cluster.types import Chunk
from models.documents.atoms import Atom, AtomSplitter
from models.documents.block import Block, Boundary
from models.documents.settings import ChunkSettings

# A boundary can be chosen to this part of a chunk: finer atoms leave more choice, and cost more.
_ATOMS_PER_CHUNK = 8
_MIN_ATOM_TOKENS = 4
_FORGET_ATOMS = 1024


def chunks_of(
    blocks: Iterable[Block], tokenizer: tokenizers.Tokenizer, settings: ChunkSettings
) -> Iterator[Chunk]:
    """The chunks of a file's blocks, as soon as enough of them has come.

    `tokenizer` has no truncation and no padding.
    """
    chunker = _Chunker(tokenizer, settings)
    for block in blocks:
        yield from chunker.add(block)
    yield from chunker.finish()


class _Chunker:
    """The text and atoms that are not yet all in chunks."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: ChunkSettings) -> None:
        self._tokenizer = tokenizer
        self._capacity = settings.capacity
        self._overlap = settings.overlap
        atom_size = max(_MIN_ATOM_TOKENS, self._capacity // _ATOMS_PER_CHUNK)
        self._splitter = AtomSplitter(tokenizer, max_size=atom_size)
        self._text = ""
        self._text_start = 0  # characters of the file before it
        self._atoms: list[Atom] = []
        self._first = 0  # where the next chunk starts
        self._covered = 0  # atoms before this one are in a chunk
        self._waiting = 0  # tokens from `_first` on

    def add(self, block: Block) -> Iterator[Chunk]:
        if self._atoms and self._atoms[-1].block.metadata != block.metadata:
            yield from self.finish()
        offset = self._text_start + len(self._text)
        self._text += block.text
        for atom in self._splitter.atoms(block, offset=offset):
            self._atoms.append(atom)
            self._waiting += atom.size
        # What is left is then a chunk at least, and the last two can be balanced.
        while self._waiting > 2 * self._capacity + self._overlap:
            yield self._next_chunk()
        self._forget()

    def finish(self) -> Iterator[Chunk]:
        """The chunks of what is left."""
        while self._covered < len(self._atoms):
            yield self._next_chunk()
        self._first = self._covered
        self._waiting = 0
        self._forget()

    def _next_chunk(self) -> Chunk:
        end = self._choose_end()
        chunk = self._chunk(self._first, end)
        while end - self._first > 1 and not self._fits(chunk.text):
            end -= 1  # put together, the atoms have more tokens than apart
            chunk = self._chunk(self._first, end)
        if end <= self._covered:  # nothing but overlap would fit: start without it
            self._move_first(self._covered)
            return self._next_chunk()
        self._covered = end
        self._move_first(self._choose_start(end))
        return chunk

    def _choose_end(self) -> int:
        """The atom before which the chunk from `_first` on ends."""
        atoms, first = self._atoms, self._first
        sizes = [0]  # of the first 0, 1, 2, … atoms
        for atom in atoms[first:]:
            if sizes[-1] + atom.size > self._capacity and len(sizes) > 1:
                break
            sizes.append(sizes[-1] + atom.size)
        full = first + len(sizes) - 1
        if full == len(atoms):
            return full
        repeated = sizes[min(self._covered - first, len(sizes) - 1)]
        # A chunk brings something new, and leaves something for the one after it.
        lowest = repeated + (self._capacity - repeated) // 2
        highest = self._waiting - self._capacity // 4
        best, best_boundary = full, Boundary.CHARACTER
        for end in range(max(first, self._covered) + 1, full + 1):
            size, boundary = sizes[end - first], atoms[end].boundary
            is_section = boundary is Boundary.SECTION
            if size < (self._capacity // 4 if is_section else lowest) or size > highest:
                continue
            if boundary >= best_boundary:
                best, best_boundary = end, boundary
        return best

    def _choose_start(self, end: int) -> int:
        """Where the chunk after one that ends before `end` starts: `end`, or up to the overlap
        before it."""
        if end == len(self._atoms) or self._atoms[end].boundary is Boundary.SECTION:
            return end
        start, at_sentence = end, None
        backwards = range(end - 1, self._first, -1)
        sizes = accumulate(self._atoms[index].size for index in backwards)
        for index, size in zip(backwards, sizes, strict=True):
            if size > self._overlap:
                break
            start = index
            if self._atoms[index].boundary >= Boundary.SENTENCE:
                at_sentence = index
            if self._atoms[index].boundary is Boundary.SECTION:
                break
        return start if at_sentence is None else at_sentence

    def _move_first(self, first: int) -> None:
        self._waiting -= sum(atom.size for atom in self._atoms[self._first : first])
        self._first = first

    def _chunk(self, first: int, end: int) -> Chunk:
        head, last = self._atoms[first], self._atoms[end - 1]
        text = self._text[head.start - self._text_start : last.end - self._text_start].rstrip()
        block = head.block
        return Chunk(
            text=text,
            start=head.start,
            end=head.start + len(text),
            heading=block.heading if head.is_first else block.inner_heading or block.heading,
            page=block.page,
            loader_metadata=block.metadata,
        )

    def _fits(self, text: str) -> bool:
        return len(self._tokenizer.encode(text, add_special_tokens=False)) <= self._capacity

    def _forget(self) -> None:
        """Let go of atoms and text that are in chunks."""
        if self._first < _FORGET_ATOMS and self._first < len(self._atoms):
            return
        text_end = self._text_start + len(self._text)
        keep_from = self._atoms[self._first].start if self._first < len(self._atoms) else text_end
        self._text = self._text[keep_from - self._text_start :]
        self._text_start = keep_from
        del self._atoms[: self._first]
        self._covered -= self._first
        self._first = 0
