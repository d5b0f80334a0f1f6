"""What the engine asks of whoever computes its steps."""

from collections.abc import Mapping
from typing import Protocol

from models.engine.step_inputs import StepInputs, StepOutputs


class Runner(Protocol):
    """The computation of one engine, on one rank or several. What the properties say is fixed after
    construction."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int:
        """Tokens in a block."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of one sequence, prompt and output together."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    @property
    def default_max_num_batched_tokens(self) -> int:
        """Tokens of a step that suit the device."""

    @property
    def min_prompt_tokens(self) -> int:
        """Fewer tokens of a prompt in a step would not make it shorter."""

    @property
    def num_layers_apart(self) -> int:
        """Layers, of which a chunk may pass a few in each step; 0: it passes all at once."""

    @property
    def start_seconds(self) -> Mapping[str, float]:
        """How long each part of its construction took."""

    def describe(self) -> str:
        """One line for a person: device, dtype, context limit, blocks, memory."""

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """
        Raises:
            StepInterrupted: `interrupt` was called, and the inputs allow it. Their block copies are
                made; the rest has to be computed again.
        """

    def interrupt(self) -> None:
        """Ask for an early end of the step under way, or of the next one, if its inputs allow it.
        A runner whose steps are short or cannot be given up need not follow. Safe in any thread.
        """

    def forget_interrupt(self) -> None:
        """What it was asked for has no reason any more."""

    def check_health(self) -> None:
        """Safe in any thread, and quick.

        Raises:
            RuntimeError: no step can be executed any more.
        """

    def close(self) -> None:
        """End the processes that it has started. Nothing is executed afterwards."""
