"""A runner that computes nothing, for measuring what surrounds the model.

Every sequence's next token is its last one plus one. Steps end at whole multiples of the step time
on the monotonic clock, so that another process on the machine knows when a token was made.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from models.adapters.checkpoint import LoadedAdapter, read_adapter
from models.checkpoint import DecoderConfig
from models.engine.step_inputs import StepInputs, StepOutputs

_NUM_BLOCKS = 65_536


class SyntheticRunner:
    """Satisfies `Runner`, and `AdapterHost`: adapters are read and checked as for a model, take
    their slots, and change nothing."""

    def __init__(
        self,
        decoder: DecoderConfig,
        *,
        step_ms: float,
        max_model_len: int,
        block_size: int,
        num_adapter_slots: int = 0,
        max_lora_rank: int = 16,
    ) -> None:
        self._decoder = decoder
        self._max_lora_rank = max_lora_rank
        self.num_adapter_slots = num_adapter_slots
        self.num_blocks = _NUM_BLOCKS
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.vocab_size = decoder.vocab_size
        self.eos_token_ids: frozenset[int] = frozenset()
        self.default_max_num_batched_tokens = self.min_prompt_tokens = 65_536
        self.num_layers_apart = 0
        self._step_s = step_ms / 1000
        self._last_beat = 0

    @property
    def start_seconds(self) -> Mapping[str, float]:
        return {}

    def describe(self) -> str:
        return f"synthetic steps of {self._step_s * 1000:g} ms, no model is computed"

    def execute(self, inputs: StepInputs) -> StepOutputs:
        self._wait_for_beat()
        token_ids = [
            (inputs.token_ids[row.logit_index] + 1) % self.vocab_size
            for row in inputs.sampling_rows
        ]
        return StepOutputs(
            token_ids=token_ids, logprobs=[None] * len(token_ids), prompt_logprobs=[]
        )

    def read_adapter(self, folder: Path) -> LoadedAdapter:
        """See `AdapterHost`."""
        return read_adapter(
            folder, self._decoder, max_rank=self._max_lora_rank, dtype=torch.bfloat16
        )

    def install_adapter(self, slot: int, adapter: LoadedAdapter, layer_index: int) -> None:
        """There is no model beside which it could be kept."""

    def interrupt(self) -> None:
        """Steps end by the clock."""

    def forget_interrupt(self) -> None:
        """Nothing was asked for."""

    def check_health(self) -> None:
        """Nothing can break."""

    def close(self) -> None:
        """Nothing was started."""

    def _wait_for_beat(self) -> None:
        """Until the next multiple of the step time; at once when the last one was missed."""
        if self._step_s == 0:
            return
        now_s = time.monotonic()
        beat = max(self._last_beat + 1, int(now_s / self._step_s))
        self._last_beat = beat
        time.sleep(max(0.0, beat * self._step_s - now_s))
