"""What a runner asks of a model: a step's hidden states, and logits of some of their rows."""

from typing import Protocol

import torch

from models.adapters.bank import AdapterStep
from models.attention.backend import StepAttention


class StepDecoder(Protocol):
    """`models.decoder.Decoder`, or `TransformersDecoder` for families that it does not have."""

    def forward(
        self,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        attention: StepAttention,
        adapters: AdapterStep | None = None,
    ) -> torch.Tensor: ...

    def logits(self, hidden_RM: torch.Tensor) -> torch.Tensor | None:
        """None on ranks that have none."""
