"""Launches the next step before the tokens of the one under way are read, so that the device does
not wait for the host.

The guess is that the next step decodes the same sequences. It is made where none of them ends by
its length, and is right unless one ends by a token, leaves, or another one joins. The scheduler
knows nothing of it: it chooses every step with all tokens known, and a step that it chooses
otherwise is computed as usual. What a wrong guess wrote lies in slots that are written again before
they are read: the device does things in order, and only full blocks are shared.
"""

from collections.abc import Callable

from models.engine.batch import Batch
from models.engine.launched_step import LaunchedStep, LaunchingRunner
from models.engine.sequence import Sequence
from models.engine.step_inputs import StepInputs, StepOutputs


class StepOverlap:
    """The step that is under way beyond the one whose tokens are waited for, if any."""

    def __init__(self, runner: LaunchingRunner, reserve: Callable[[Batch], bool]) -> None:
        """`reserve` finds room for the step after a batch; see `Scheduler.try_reserve_next`."""
        self._runner = runner
        self._reserve = reserve
        self._ahead: tuple[list[Sequence], LaunchedStep] | None = None
        self.num_hits = 0  # guesses that were right

    @property
    def is_ahead(self) -> bool:
        """Whether a step was launched that is to be taken yet."""
        return self._ahead is not None

    def take(self, batch: Batch) -> LaunchedStep | None:
        """The step that was launched for just this batch; forgets one that was for another."""
        ahead, self._ahead = self._ahead, None
        if (
            ahead is None
            or not batch.is_decoding_only
            or batch.block_copies
            or batch.is_interruptible
        ):
            return None
        sequences, launched = ahead
        if sequences != batch.singles:
            return None
        self.num_hits += 1
        return launched

    def launch(self, inputs: StepInputs) -> LaunchedStep:
        return self._runner.launch(inputs)

    def finish(self, batch: Batch, launched: LaunchedStep) -> StepOutputs:
        """The batch's outputs; meanwhile the step after it begins, if it can be guessed."""
        if batch.is_decoding_only and launched.can_be_continued and self._reserve(batch):
            following = self._runner.continue_step(launched)
            self._ahead = list(batch.singles), following
        outputs = launched.result()
        if not launched.is_settled:
            self._ahead = None
        return outputs
