"""What the scheduler chose for one step, and its translation into plain integers."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.types import SamplingParams
from models.engine.beam_search import num_candidates
from models.engine.block_manager import BlockCopy
from models.engine.grammar_masks import GrammarMasks
from models.engine.layered_chunk import LayerSlice
from models.engine.randomness import derive_seed
from models.engine.sequence import Sequence
from models.engine.step_inputs import LayerInputs, PromptLogprobsRow, SamplingRow, StepInputs
from models.grammar.compiler import GrammarMatcher


@dataclass(slots=True, eq=False)
class Draft:
    """A sequence that lacks one token, and what is guessed to follow that token."""

    sequence: Sequence
    token_ids: list[int]
    # Where there is a grammar, what it allows after each of them.
    matchers: list[GrammarMatcher] = field(default_factory=list)
    num_accepted: int = 0  # of them, once the step is recorded

    @property
    def num_tokens(self) -> int:
        """That the step computes."""
        return 1 + len(self.token_ids)


@dataclass(slots=True, kw_only=True)
class Batch:
    """One step, as it is being filled and then computed.

    A sequence that lacks one token is there by itself, because there are many of them and they
    need little; the others are there with the number of their tokens that the step computes. Some
    of those that lack one token may guess more.
    """

    max_num_tokens: int
    singles: list[Sequence] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    num_draft_tokens: int = 0  # the certain ones among them
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    num_chunk_tokens: int = 0
    num_long_chunk_tokens: int = 0  # of these, those of prompts that need several steps
    layer_slice: LayerSlice | None = None  # of a chunk of such a prompt
    max_long_tokens: float | None = None  # of both, beside streams; None: nobody has asked
    num_online_tokens: int | None = None  # None: no batch sequence was asked
    block_copies: list[BlockCopy] = field(default_factory=list)
    # Only batch sequences are in it: it may be given up while it is computed.
    is_interruptible: bool = False
    # Sequences, and how many of their tokens exist after the step, for the prefix cache: where it
    # may be given up, and where a chunk passes its last layers.
    unpublished: list[tuple[Sequence, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.singles or self.drafts or self.chunks)

    @property
    def num_tokens(self) -> int:
        """That the step computes; those that pass some of the layers count as a part of them."""
        num_tokens = len(self.singles) + self.num_draft_tokens + self.num_chunk_tokens
        if self.layer_slice is not None:
            num_tokens += math.ceil(self.layer_slice.num_tokens)
        return num_tokens

    @property
    def num_long_tokens(self) -> float:
        """Likewise, of prompts that need several steps."""
        sliced = 0.0 if self.layer_slice is None else self.layer_slice.num_tokens
        return self.num_long_chunk_tokens + sliced

    @property
    def is_decoding_only(self) -> bool:
        """Whether there is nothing but sequences that lack one token."""
        return not (self.chunks or self.drafts or self.layer_slice)

    @property
    def num_sequences(self) -> int:
        return len(self.singles) + len(self.drafts) + len(self.chunks)

    @property
    def num_batch_tokens(self) -> int:
        """Of batch sequences."""
        return 0 if self.num_online_tokens is None else self.num_tokens - self.num_online_tokens

    @property
    def num_tokens_left(self) -> int:
        """Of the step's budget."""
        return max(0, self.max_num_tokens - self.num_tokens)

    def add(self, sequence: Sequence, num_new_tokens: int) -> None:
        if sequence.num_computed_tokens + 1 == sequence.num_tokens:
            self.singles.append(sequence)
        else:
            self.chunks.append((sequence, num_new_tokens))
            self.num_chunk_tokens += num_new_tokens

    def guess(self, drafts: list[Draft]) -> None:
        """Let some of the singles guess. To be called once, when the rest is chosen."""
        guessing = {id(draft.sequence) for draft in drafts}
        self.singles = [seq for seq in self.singles if id(seq) not in guessing]
        self.drafts = drafts
        self.num_draft_tokens = sum(draft.num_tokens for draft in drafts)
        if self.num_online_tokens:
            # Beside online sequences, only they guess.
            self.num_online_tokens += self.num_draft_tokens - len(drafts)

    def sequences(self) -> Iterator[Sequence]:
        yield from self.singles
        for draft in self.drafts:
            yield draft.sequence
        for sequence, _ in self.chunks:
            yield sequence
        if self.layer_slice is not None:
            yield self.layer_slice.chunk.sequence

    def sampled_chunks(self) -> Iterator[Sequence]:
        """Those of the chunks whose last token the step reaches, so that it chooses the next."""
        for sequence, num_new_tokens in self.chunks:
            if sequence.num_computed_tokens + num_new_tokens == sequence.num_tokens:
                yield sequence


def build_step_inputs(
    batch: Batch, *, block_size: int, eos_token_ids: frozenset[int], masks: GrammarMasks
) -> StepInputs:
    """Integers for the runner. `eos_token_ids` are the model's end-of-sequence tokens.

    Sorts the batch's chunks so that shorter ones come first; outputs refer to that order.
    """
    singles = batch.singles
    batch.chunks.sort(key=lambda chunk: chunk[1])
    matchers = list(_matchers(batch))
    positions = [seq.num_computed_tokens for seq in singles]
    inputs = StepInputs(
        token_ids=[seq.last_token_id for seq in singles],
        positions=positions,
        slot_mapping=[
            seq.block_table[-1] * block_size + position % block_size
            for seq, position in zip(singles, positions, strict=True)
        ],
        query_lens=[1] * len(singles),
        context_lens=[seq.num_tokens for seq in singles],
        block_tables=[seq.block_table for seq in singles],
        sampling_rows=[],
        block_copies=batch.block_copies,
        is_interruptible=batch.is_interruptible,
        read_grammar_masks=masks.begin(matchers) if matchers else None,
        adapter_slots=_adapter_slots(batch),
        layers=_layer_inputs(batch.layer_slice, block_size),
    )
    mask_rows = itertools.count()
    for index, sequence in enumerate(singles):
        row = sequence.sampling_row
        if sequence.is_plain and row is not None:
            row.logit_index = index
            row.position = sequence.num_tokens
            inputs.sampling_rows.append(row)
        else:
            inputs.sampling_rows.extend(_rows(sequence, index, eos_token_ids, mask_rows))
    for draft in batch.drafts:
        _append_draft(inputs, draft, block_size)
        inputs.sampling_rows.extend(_draft_rows(draft, inputs, eos_token_ids, mask_rows))
    for sequence, num_new_tokens in batch.chunks:
        _append_chunk(inputs, sequence, num_new_tokens, block_size)
        if sequence.num_computed_tokens + num_new_tokens == sequence.num_tokens:
            last = len(inputs.token_ids) - 1
            inputs.sampling_rows.extend(_rows(sequence, last, eos_token_ids, mask_rows))
    return inputs


def _layer_inputs(layer_slice: LayerSlice | None, block_size: int) -> LayerInputs | None:
    if layer_slice is None:
        return None
    chunk = layer_slice.chunk
    if chunk.inputs is None:
        chunk.inputs = StepInputs(
            token_ids=[],
            positions=[],
            slot_mapping=[],
            query_lens=[],
            context_lens=[],
            block_tables=[],
            sampling_rows=[],
            adapter_slots=_known([chunk.sequence.adapter_slot]),
        )
        _append_chunk(chunk.inputs, chunk.sequence, chunk.num_tokens, block_size)
    return LayerInputs(
        chunk=chunk.inputs,
        first_layer=layer_slice.first_layer,
        stop_layer=layer_slice.stop_layer,
    )


def _adapter_slots(batch: Batch) -> list[int | None]:
    slots = [sequence.adapter_slot for sequence in batch.singles]
    for draft in batch.drafts:
        slots += [draft.sequence.adapter_slot] * draft.num_tokens
    slots += [sequence.adapter_slot for sequence, _ in batch.chunks]
    return _known(slots)


def _known(slots: list[int | None]) -> list[int | None]:
    """Empty, where no sequence has an adapter."""
    return slots if any(slot is not None for slot in slots) else []


def end_token_ids(params: SamplingParams, eos_token_ids: frozenset[int]) -> frozenset[int]:
    """The tokens that end a sequence of a request."""
    eos = frozenset() if params.ignore_eos else eos_token_ids
    return eos.union(params.stop_token_ids)


def prompt_logprobs_row(
    sequence: Sequence, num_new_tokens: int, first_index: int
) -> PromptLogprobsRow | None:
    """The part of the prompt's logprobs that this step computes, if they are wanted."""
    num_top = sequence.params.prompt_logprobs
    start = sequence.num_computed_tokens
    # Position p predicts token p+1; after a preemption they are not reported again.
    stop = min(start + num_new_tokens, sequence.num_prompt_tokens - 1)
    if num_top is None or stop <= start or sequence.output_token_ids:
        return None
    return PromptLogprobsRow(
        first_index=first_index,
        target_token_ids=sequence.prompt_token_ids[start + 1 : stop + 1],
        num_top=num_top,
    )


def _matchers(batch: Batch) -> Iterator[GrammarMatcher]:
    """One for each row with a grammar, in the order of the rows."""
    for sequence in batch.singles:
        if sequence.matcher is not None:
            yield sequence.matcher
    for draft in batch.drafts:
        if draft.sequence.matcher is not None:
            yield draft.sequence.matcher
            yield from draft.matchers
    for sequence in batch.sampled_chunks():
        if sequence.matcher is not None:
            yield sequence.matcher


def _append_draft(inputs: StepInputs, draft: Draft, block_size: int) -> None:
    """Each of its tokens as a sequence of its own on the same blocks, one token longer than the one
    before: keys and values are written before any are read. So guesses are decoded by whatever
    decodes fastest, and to the same bits as one at a time.
    """
    sequence, table = draft.sequence, draft.sequence.block_table
    first = sequence.num_computed_tokens
    positions = range(first, first + draft.num_tokens)
    inputs.token_ids.append(sequence.last_token_id)
    inputs.token_ids.extend(draft.token_ids)
    inputs.positions.extend(positions)
    inputs.slot_mapping.extend(
        table[position // block_size] * block_size + position % block_size for position in positions
    )
    inputs.query_lens.extend([1] * draft.num_tokens)
    inputs.context_lens.extend(position + 1 for position in positions)
    inputs.block_tables.extend([table] * draft.num_tokens)


def _draft_rows(
    draft: Draft, inputs: StepInputs, eos_token_ids: frozenset[int], mask_rows: Iterator[int]
) -> Iterator[SamplingRow]:
    """The sequence's row, and one for each guessed token, as if those before it had come. Its
    tokens are the last of the inputs so far."""
    sequence = draft.sequence
    logit_index = len(inputs.token_ids) - draft.num_tokens
    for num_guessed in range(draft.num_tokens):
        yield SamplingRow(
            params=sequence.params,
            seed=sequence.seed,
            logit_index=logit_index + num_guessed,
            position=sequence.num_tokens + num_guessed,
            prompt_token_ids=sequence.prompt_token_ids,
            output_token_ids=sequence.output_token_ids,
            guessed_token_ids=draft.token_ids[:num_guessed],
            forbidden_token_ids=_forbidden_token_ids(sequence, num_guessed, eos_token_ids),
            mask_row=None if sequence.matcher is None else next(mask_rows),
        )


def _append_chunk(
    inputs: StepInputs, sequence: Sequence, num_new_tokens: int, block_size: int
) -> None:
    table = sequence.block_table
    start = sequence.num_computed_tokens
    stop = start + num_new_tokens
    row = prompt_logprobs_row(sequence, num_new_tokens, len(inputs.token_ids))
    if row is not None:
        inputs.prompt_logprobs_rows.append(row)
    inputs.token_ids.extend(sequence.tokens(start, stop))
    inputs.positions.extend(range(start, stop))
    inputs.slot_mapping.extend(
        table[position // block_size] * block_size + position % block_size
        for position in range(start, stop)
    )
    inputs.query_lens.append(num_new_tokens)
    inputs.context_lens.append(stop)
    inputs.block_tables.append(table)


def _rows(
    sequence: Sequence, logit_index: int, eos_token_ids: frozenset[int], mask_rows: Iterator[int]
) -> list[SamplingRow]:
    """The sequence's row, and one for each fork that it is about to have."""
    params = sequence.params
    if sequence.sampling_row is None:
        sequence.sampling_row = _new_row(sequence, sequence.seed, eos_token_ids)
    rows = [sequence.sampling_row]
    if params.beam is None:
        rows += [
            _new_row(sequence, derive_seed(sequence.seed, fork), eos_token_ids)
            for fork in range(1, sequence.num_slots)
        ]
    mask_row = None if sequence.matcher is None else next(mask_rows)
    forbidden = _forbidden_token_ids(sequence, 0, eos_token_ids)
    for row in rows:
        row.logit_index = logit_index
        row.position = sequence.num_tokens
        row.forbidden_token_ids = forbidden
        row.mask_row = mask_row
    return rows


def _forbidden_token_ids(
    sequence: Sequence, num_guessed: int, eos_token_ids: frozenset[int]
) -> tuple[int, ...]:
    """After its output and so many guessed tokens."""
    params = sequence.params
    if len(sequence.output_token_ids) + num_guessed >= params.min_tokens:
        return ()
    return tuple(eos_token_ids.union(params.stop_token_ids))


def _new_row(sequence: Sequence, seed: int, eos_token_ids: frozenset[int]) -> SamplingRow:
    params = sequence.params
    beam = params.beam
    ending = end_token_ids(params, eos_token_ids)
    return SamplingRow(
        params=params,
        seed=seed,
        prompt_token_ids=sequence.prompt_token_ids,
        output_token_ids=sequence.output_token_ids,
        num_candidates=0 if beam is None else num_candidates(beam, ending),
    )
