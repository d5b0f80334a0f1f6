"""A step as rank 0 sends it to the other ranks: what they need of `StepInputs`, as msgpack.

How tokens are chosen (penalties, grammars, beams) is rank 0's business; the others only learn of
which positions it wants logits.
"""

from typing import Self

import msgspec

from models.engine.step_inputs import LayerInputs, StepInputs


class LayerOrder(msgspec.Struct, frozen=True, array_like=True):
    """As `LayerInputs`."""

    chunk: "StepOrder"
    first_layer: int
    stop_layer: int

    @classmethod
    def of(cls, layers: LayerInputs) -> Self:
        return cls(StepOrder.of(layers.chunk), layers.first_layer, layers.stop_layer)

    def inputs(self) -> LayerInputs:
        return LayerInputs(
            chunk=self.chunk.inputs(), first_layer=self.first_layer, stop_layer=self.stop_layer
        )


class StepOrder(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """The lists are those of `StepInputs`; `logit_indices` and `scored_spans` (first index, count)
    are the positions of its sampling rows and of its prompt logprobs."""

    token_ids: list[int]
    positions: list[int]
    slot_mapping: list[int]
    query_lens: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    block_copies: list[tuple[int, int]]
    logit_indices: list[int]
    scored_spans: list[tuple[int, int]]
    adapter_slots: list[int | None]
    layers: LayerOrder | None

    @classmethod
    def of(cls, inputs: StepInputs) -> Self:
        return cls(
            inputs.token_ids,
            inputs.positions,
            inputs.slot_mapping,
            inputs.query_lens,
            inputs.context_lens,
            inputs.block_tables,
            inputs.block_copies,
            [row.logit_index for row in inputs.sampling_rows],
            [(row.first_index, len(row.target_token_ids)) for row in inputs.prompt_logprobs_rows],
            inputs.adapter_slots,
            None if inputs.layers is None else LayerOrder.of(inputs.layers),
        )

    def inputs(self) -> StepInputs:
        """The same step without what rank 0 alone needs."""
        return StepInputs(
            token_ids=self.token_ids,
            positions=self.positions,
            slot_mapping=self.slot_mapping,
            query_lens=self.query_lens,
            context_lens=self.context_lens,
            block_tables=self.block_tables,
            block_copies=self.block_copies,
            sampling_rows=[],
            adapter_slots=self.adapter_slots,
            layers=None if self.layers is None else self.layers.inputs(),
        )
