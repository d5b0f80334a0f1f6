"""The limits that a scheduler keeps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What a step and the running set may hold."""

    max_num_seqs: int
    max_step_rows: int  # sequences and guessed tokens
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool = True
    # How much longer batch sequences may make the steps of online ones; None: any time.
    max_batch_slowdown: float | None = None
    # The same of prompts that need several steps, beside streams; and how many of their tokens a
    # step takes in any case.
    max_prompt_slowdown: float | None = None
    min_prompt_tokens: int = 1
    num_layers_apart: int = 0  # see `Runner.num_layers_apart`
