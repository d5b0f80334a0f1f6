"""A step under way on the device, and the step after it as far as that is known without its tokens.

Shapes: R = rows that are sampled.
"""

import copy
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from models.engine.runner import Runner
from models.engine.sampler import Draw
from models.engine.step_inputs import SamplingRow, StepInputs, StepOutputs


class LaunchedStep:
    """What was computed, and tokens that are chosen or about to be."""

    def __init__(
        self, inputs: StepInputs, finish: Callable[[], StepOutputs], draw: Draw | None
    ) -> None:
        """`draw`: where the tokens are chosen on the device, and nothing else is wanted of it."""
        self.inputs = inputs
        self._finish = finish
        self._draw = draw

    @property
    def can_be_continued(self) -> bool:
        """Whether the next step may be launched now: every sequence is decoding, and what its next
        token depends on is on the device."""
        inputs = self.inputs
        return (
            self._draw is not None
            and len(inputs.sampling_rows) == len(inputs.token_ids) == len(inputs.query_lens)
            and not inputs.adapter_slots
            and not inputs.is_interruptible
            and all(map(_is_independent, inputs.sampling_rows))
        )

    def keep(self) -> torch.Tensor:
        """The chosen tokens [R], on the device. What `result` may need outlasts the next step."""
        assert self._draw is not None, "it can be continued"
        return self._draw.keep()

    def result(self) -> StepOutputs:
        """Wait for the tokens."""
        return self._finish()

    @property
    def is_settled(self) -> bool:
        """After `result`: whether `keep` gave the same tokens."""
        return self._draw is not None and self._draw.is_settled


@runtime_checkable
class LaunchingRunner(Runner, Protocol):
    """A runner whose steps can be launched ahead of their predecessors' tokens."""

    @property
    def overlaps_steps(self) -> bool:
        """Whether it is worth while here."""

    def launch(self, inputs: StepInputs) -> LaunchedStep:
        """As `execute`, without waiting for the tokens."""
        ...

    def continue_step(self, launched: LaunchedStep) -> LaunchedStep:
        """Launch the step that gives each of its sequences one more token."""
        ...


def following_inputs(inputs: StepInputs, block_size: int) -> StepInputs:
    """The same sequences one token later. Their token ids are those that `inputs` chooses; 0 stands
    for them."""
    positions = [position + 1 for position in inputs.positions]
    # Copies: the rows of the step under way may be looked at again.
    rows = [copy.copy(row) for row in inputs.sampling_rows]
    for row in rows:
        row.position += 1
    return StepInputs(
        token_ids=[0] * len(positions),
        positions=positions,
        slot_mapping=[
            table[position // block_size] * block_size + position % block_size
            for table, position in zip(inputs.block_tables, positions, strict=True)
        ],
        query_lens=inputs.query_lens,
        context_lens=[context_len + 1 for context_len in inputs.context_lens],
        block_tables=inputs.block_tables,
        sampling_rows=rows,
    )


def can_draw(inputs: StepInputs) -> bool:
    """Whether tokens are all that is wanted of a step, and no grammar has a say."""
    rows = inputs.sampling_rows
    if not rows or inputs.prompt_logprobs_rows or inputs.read_grammar_masks is not None:
        return False
    return all(row.params.logprobs is None and not row.num_candidates for row in rows)


def drawn_outputs(draw: Draw) -> StepOutputs:
    """Waits for the tokens."""
    token_ids, failed_rows = draw.result()
    return StepOutputs(
        token_ids=token_ids,
        logprobs=[None] * len(token_ids),
        prompt_logprobs=[],
        failed_rows=frozenset(failed_rows),
    )


def _is_independent(row: SamplingRow) -> bool:
    """Whether its choice needs nothing of the tokens before it but the model's answer to them."""
    params = row.params
    return (
        params.repetition_penalty == 1.0
        and params.frequency_penalty == 0.0
        and params.presence_penalty == 0.0
        and not row.forbidden_token_ids
    )
