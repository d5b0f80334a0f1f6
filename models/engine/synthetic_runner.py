"""A runner that computes nothing, for measuring what surrounds the model.

Every sequence's next token is its last one plus one, and a step takes a fixed time.
"""

import time

from models.engine.step_inputs import StepInputs, StepOutputs

_NUM_BLOCKS = 65_536


class SyntheticRunner:
    """Satisfies `Runner`. Steps end on a fixed beat, so that the pace does not drift."""

    def __init__(
        self, *, step_ms: float, vocab_size: int, max_model_len: int, block_size: int
    ) -> None:
        self.num_blocks = _NUM_BLOCKS
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.eos_token_ids: frozenset[int] = frozenset()
        self.default_max_num_batched_tokens = 65_536
        self._step_s = step_ms / 1000
        self._next_beat_s = time.perf_counter()

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

    def _wait_for_beat(self) -> None:
        now_s = time.perf_counter()
        self._next_beat_s = max(self._next_beat_s + self._step_s, now_s)
        if self._next_beat_s > now_s:
            time.sleep(self._next_beat_s - now_s)
