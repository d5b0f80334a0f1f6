"""The interface between a decoder and whatever computes attention over the paged KV cache.

Shapes: T = tokens in the step, H = query heads, K = key/value heads, D = head width.
"""

from typing import Protocol

import torch

from models.engine.step_inputs import StepInputs


class StepAttention(Protocol):
    """Attention of one step, ready to be applied layer by layer."""

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        """Store the step's keys and values in the layer's cache, then attend over each context.

        Queries and keys are already rotated. Causal; a layer with a sliding window sees only that
        many last tokens, its own included. Rows beyond the step's tokens are padding: they are not
        stored, and come back as zeros. Returns a contiguous [T, H, D].
        """
        ...


class AttentionBackend(Protocol):
    """One way to compute attention; holds the KV cache and each layer's window."""

    def prepare(self, inputs: StepInputs) -> StepAttention:
        """Once per step: everything about it that does not depend on the layer."""
        ...


def begun_blocks(inputs: StepInputs, block_size: int) -> list[int]:
    """Last blocks that the step begins and does not fill.

    What a former owner left behind the context is masked, but a NaN survives a mask.
    """
    return [
        table[(context_len - 1) // block_size]
        for query_len, context_len, table in zip(
            inputs.query_lens, inputs.context_lens, inputs.block_tables, strict=True
        )
        if context_len % block_size and (context_len - 1) % block_size < query_len
    ]
