"""A step's integers on the device: sent as one copy, with room for rows that pad it to a size.

Shapes: T = rows of the step, S = sequences, P = those with several tokens, R = rows that are
sampled, C = changes of block tables.
"""

from dataclasses import dataclass

import numpy as np
import torch

from models.attention.block_tables import BlockTables
from models.engine.step_inputs import StepInputs
from models.engine.transfers import upload


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """All int32. Padding: token 0 at position 0 in slot -1, of a sequence without a context."""

    num_decodes: int  # leading sequences of one token each, padding included
    num_tokens: int  # rows, without the padding at the end of the chunks
    max_context_len: int
    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor
    context_lens_S: torch.Tensor
    query_starts_P: torch.Tensor  # P + 1: rows where each chunk begins, and the end of the last
    logit_indices_R: torch.Tensor

    @property
    def num_chunks(self) -> int:
        return len(self.query_starts_P) - 1


def send_step(
    inputs: StepInputs, tables: BlockTables, *, num_rows: int, device: torch.device
) -> StepTensors:
    """Copy a step to the device, and bring its block tables up to date there.

    `num_rows`: pad to as many. A step of decoding sequences alone is padded with sequences, every
    other one with rows after its last.
    """
    num_tokens, num_sequences = len(inputs.token_ids), len(inputs.query_lens)
    num_decodes = next(
        (i for i, length in enumerate(inputs.query_lens) if length > 1), num_sequences
    )
    num_padding = num_rows - num_tokens
    is_decode_only = num_decodes == num_sequences
    lens = inputs.context_lens + [0] * num_padding if is_decode_only else inputs.context_lens
    starts = np.cumsum([num_decodes, *inputs.query_lens[num_decodes:]])
    changes_2C = tables.changes(inputs.block_tables)
    parts = (
        inputs.token_ids + [0] * num_padding,
        inputs.positions + [0] * num_padding,
        inputs.slot_mapping + [-1] * num_padding,
        lens,
        starts,
        [row.logit_index for row in inputs.sampling_rows],
        changes_2C.reshape(-1),
    )
    packed = upload(np.concatenate([np.asarray(part, dtype=np.int32) for part in parts]), device)
    *sections, changes = packed.split_with_sizes([len(part) for part in parts])
    tables.apply(changes.view(2, -1))
    ids_T, positions_T, slots_T, lens_S, starts_P, indices_R = sections
    return StepTensors(
        num_decodes=len(lens) if is_decode_only else num_decodes,
        num_tokens=num_rows if is_decode_only else num_tokens,
        max_context_len=max(inputs.context_lens),
        token_ids_T=ids_T,
        positions_T=positions_T,
        slots_T=slots_T,
        context_lens_S=lens_S,
        query_starts_P=starts_P,
        logit_indices_R=indices_R,
    )
