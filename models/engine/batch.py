"""What the scheduler chose for one step, and its translation into plain integers."""

import itertools
from dataclasses import dataclass, field

from cluster.types import SamplingParams
from models.engine.beam_search import num_candidates
from models.engine.block_manager import BlockCopy
from models.engine.grammar_masks import GrammarMasks
from models.engine.randomness import derive_seed
from models.engine.sequence import Sequence
from models.engine.step_inputs import PromptLogprobsRow, SamplingRow, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSequence:
    """A sequence and how many of its tokens this step computes."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def is_sampled(self) -> bool:
        """Whether the step reaches the sequence's last known token, and so chooses the next."""
        sequence = self.sequence
        return sequence.num_computed_tokens + self.num_new_tokens == sequence.num_tokens


@dataclass(slots=True, kw_only=True)
class Batch:
    """One step, as it is being filled and then computed."""

    token_budget: int
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    block_copies: list[BlockCopy] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.scheduled)

    def add(self, sequence: Sequence, num_new_tokens: int, copies: list[BlockCopy]) -> None:
        self.scheduled.append(ScheduledSequence(sequence=sequence, num_new_tokens=num_new_tokens))
        self.block_copies.extend(copies)
        self.token_budget -= num_new_tokens


def build_step_inputs(
    batch: Batch, *, block_size: int, eos_token_ids: frozenset[int], masks: GrammarMasks
) -> StepInputs:
    """Integers for the runner. `eos_token_ids` are the model's end-of-sequence tokens.

    Sorts `batch.scheduled` so that sequences with one query token come first; outputs refer to
    that order.
    """
    batch.scheduled.sort(key=lambda item: item.num_new_tokens != 1)
    matchers = [
        item.sequence.matcher
        for item in batch.scheduled
        if item.is_sampled and item.sequence.matcher is not None
    ]
    inputs = StepInputs(
        token_ids=[],
        positions=[],
        slot_mapping=[],
        query_lens=[],
        context_lens=[],
        block_tables=[],
        sampling_rows=[],
        block_copies=batch.block_copies,
        grammar_masks=masks.of(matchers) if matchers else None,
    )
    mask_rows = itertools.count()
    for item in batch.scheduled:
        _append_tokens(inputs, item, block_size)
        if item.is_sampled:
            mask_row = None if item.sequence.matcher is None else next(mask_rows)
            _append_sampling_rows(inputs, item.sequence, eos_token_ids, mask_row)
    return inputs


def end_token_ids(params: SamplingParams, eos_token_ids: frozenset[int]) -> frozenset[int]:
    """The tokens that end a sequence of a request."""
    eos = frozenset() if params.ignore_eos else eos_token_ids
    return eos.union(params.stop_token_ids)


def prompt_logprobs_row(item: ScheduledSequence, first_index: int) -> PromptLogprobsRow | None:
    """The part of the prompt's logprobs that this step computes, if they are wanted."""
    sequence = item.sequence
    num_top = sequence.params.prompt_logprobs
    start = sequence.num_computed_tokens
    # Position p predicts token p+1; after a preemption they are not reported again.
    stop = min(start + item.num_new_tokens, sequence.num_prompt_tokens - 1)
    if num_top is None or stop <= start or sequence.output_token_ids:
        return None
    return PromptLogprobsRow(
        first_index=first_index,
        target_token_ids=sequence.prompt_token_ids[start + 1 : stop + 1],
        num_top=num_top,
    )


def _append_tokens(inputs: StepInputs, item: ScheduledSequence, block_size: int) -> None:
    sequence, table = item.sequence, item.sequence.block_table
    start = sequence.num_computed_tokens
    stop = start + item.num_new_tokens
    row = prompt_logprobs_row(item, len(inputs.token_ids))
    if row is not None:
        inputs.prompt_logprobs_rows.append(row)
    inputs.token_ids.extend(sequence.tokens(start, stop))
    inputs.positions.extend(range(start, stop))
    inputs.slot_mapping.extend(
        table[position // block_size] * block_size + position % block_size
        for position in range(start, stop)
    )
    inputs.query_lens.append(item.num_new_tokens)
    inputs.context_lens.append(stop)
    inputs.block_tables.append(table[: -(-stop // block_size)])


def _append_sampling_rows(
    inputs: StepInputs,
    sequence: Sequence,
    eos_token_ids: frozenset[int],
    mask_row: int | None,
) -> None:
    params = sequence.params
    forbidden: tuple[int, ...] = ()
    if len(sequence.output_token_ids) < params.min_tokens:
        forbidden = tuple(eos_token_ids.union(params.stop_token_ids))
    beam = params.beam
    num_rows = sequence.num_slots if beam is None else 1
    ending = end_token_ids(params, eos_token_ids)
    for fork in range(num_rows):
        inputs.sampling_rows.append(
            SamplingRow(
                logit_index=len(inputs.token_ids) - 1,
                params=params,
                seed=derive_seed(sequence.seed, fork),
                position=sequence.num_tokens,
                prompt_token_ids=sequence.prompt_token_ids,
                output_token_ids=sequence.output_token_ids,
                forbidden_token_ids=forbidden,
                mask_row=mask_row,
                num_candidates=0 if beam is None else num_candidates(beam, ending),
            )
        )
