"""Step sizes, where each new one costs time and memory."""

import torch

from models.engine.step_inputs import StepInputs


def padded_size(num_rows: int) -> int:
    """The number of rows that a step of `num_rows` is padded to.

    oneDNN builds and keeps a kernel for each shape that it meets, about 3 ms and 0.6 MB for each
    matrix: a replica that meets every batch size would grow by a gigabyte. Few shapes, and few
    wasted rows: at most a third, and less than 64.
    """
    for limit, multiple in ((2, 1), (8, 2), (32, 4), (64, 8), (256, 32)):
        if num_rows <= limit:
            return -(-num_rows // multiple) * multiple
    return -(-num_rows // 64) * 64


def padded_tokens(
    inputs: StepInputs, num_rows: int, *, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids and the positions, and zeros up to so many rows."""
    padding = [0] * (num_rows - len(inputs.token_ids))
    ids_T = torch.tensor(inputs.token_ids + padding, device=device)
    return ids_T, torch.tensor(inputs.positions + padding, device=device)
