"""A step's integers on the device: sent as one copy, with room for rows that pad it to a size.

Shapes: T = rows of the step, S = sequences, P = those with several tokens, R = rows that are
sampled, C = changes of block tables.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from models.attention.block_tables import BlockTables
from models.engine.step_inputs import StepInputs
from models.engine.transfers import upload

#: What a sequence of one token consists of: its token, position, slot and context.
NUM_DECODE_FIELDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """All int32. Padding: token 0 at position 0 in slot -1, of a sequence without a context."""

    num_decodes: int  # leading sequences of one token each, padding included
    num_tokens: int  # rows, without the padding at the end of the chunks
    decode_fields: torch.Tensor  # the next four as they lie in memory
    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor
    context_lens_S: torch.Tensor
    query_starts_P: torch.Tensor  # P + 1: rows where each chunk begins, and the end of the last
    logit_indices_R: torch.Tensor

    @property
    def num_chunks(self) -> int:
        return len(self.query_starts_P) - 1

    @classmethod
    def of_decodes(cls, fields: torch.Tensor, *, num_sequences: int) -> Self:
        """Sequences of one token each, whose fields lie in this memory, kind by kind."""
        ids_T, positions_T, slots_T, lens_S = fields.view(NUM_DECODE_FIELDS, num_sequences)
        return cls(
            num_decodes=num_sequences,
            num_tokens=num_sequences,
            decode_fields=fields,
            token_ids_T=ids_T,
            positions_T=positions_T,
            slots_T=slots_T,
            context_lens_S=lens_S,
            query_starts_P=lens_S[:1],
            logit_indices_R=lens_S[:0],
        )

    @staticmethod
    def padding(num_sequences: int, *, device: torch.device) -> torch.Tensor:
        """The fields of sequences that are nothing but padding."""
        fields = torch.zeros(NUM_DECODE_FIELDS, num_sequences, dtype=torch.int32, device=device)
        fields[2] = -1
        return fields.view(-1)


def num_decodes(inputs: StepInputs) -> int:
    """How many of the sequences, which come first, have one token."""
    lens = inputs.query_lens
    return next((index for index, length in enumerate(lens) if length > 1), len(lens))


def send_step(
    inputs: StepInputs, tables: BlockTables, *, num_rows: int, device: torch.device
) -> StepTensors:
    """Copy a step to the device, and bring its block tables up to date there.

    `num_rows`: pad to as many. A step of decoding sequences alone is padded with sequences, every
    other one with rows after its last.
    """
    num_tokens, num_singles = len(inputs.token_ids), num_decodes(inputs)
    is_decode_only = num_singles == len(inputs.query_lens)
    padding = [0] * (num_rows - num_tokens)
    lens = inputs.context_lens + padding if is_decode_only else inputs.context_lens
    changes_2C = tables.changes(inputs.block_tables)
    parts = (
        inputs.token_ids + padding,
        inputs.positions + padding,
        inputs.slot_mapping + [-1] * len(padding),
        lens,
        np.cumsum([num_singles, *inputs.query_lens[num_singles:]]),
        [row.logit_index for row in inputs.sampling_rows],
        changes_2C.reshape(-1),
    )
    packed = upload(np.concatenate([np.asarray(part, dtype=np.int32) for part in parts]), device)
    *sections, changes = packed.split_with_sizes([len(part) for part in parts])
    tables.apply(changes.view(2, -1))
    ids_T, positions_T, slots_T, lens_S, starts_P, indices_R = sections
    return StepTensors(
        num_decodes=len(lens) if is_decode_only else num_singles,
        num_tokens=num_rows if is_decode_only else num_tokens,
        decode_fields=packed[: 3 * num_rows + len(lens)],
        token_ids_T=ids_T,
        positions_T=positions_T,
        slots_T=slots_T,
        context_lens_S=lens_S,
        query_starts_P=starts_P,
        logit_indices_R=indices_R,
    )
