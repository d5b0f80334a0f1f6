"""Rank 0 of a tensor-parallel group: it sends each step to the other ranks and computes its part.

Whatever goes wrong on any rank ends the group, within the limits below: the error names the rank,
the other ranks' processes are killed, and every later step fails. A replica is replaced as a whole.
"""

import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.config import EngineConfig
from models.adapters.checkpoint import LoadedAdapter
from models.child_process import encode_frame
from models.engine.devices import find_device
from models.engine.model_runner import LOADING_TIMEOUT_S, ModelRunner
from models.engine.step_inputs import StepInputs, StepOutputs
from models.native.ranks import GroupError
from models.parallel.adapter_pairs import packed_pairs
from models.parallel.group import LOOPBACK, Rendezvous, TPGroup
from models.parallel.messages import (
    AdapterOrder,
    ModelOrder,
    RankOrder,
    RankReady,
    RankStarted,
    StepDone,
)
from models.parallel.rank_link import RankError, RankLink
from models.parallel.step_order import StepOrder

STARTING_TIMEOUT_S = 120.0  # for a process to load its code
STEP_TIMEOUT_S = 6.0  # of an exchange between ranks, and of the answer to a step
_SETTLING_TIMEOUT_S = 1.0  # to learn which rank is to blame
_HEARING_TIMEOUT_S = 0.2


class TPRunner:
    """Satisfies `Runner`."""

    def __init__(  # noqa: PLR0913 (those of `ModelRunner`, and where the ranks are)
        self,
        checkpoint_dir: Path,
        engine_config: EngineConfig,
        *,
        ranks: Sequence[RankLink],
        host: str = LOOPBACK,
        dtype: str = "auto",
        device: str = "auto",
        quantization: str = "auto",
        random_weights: bool = False,
    ) -> None:
        """Load the checkpoint together with the other ranks, which have been started and belong to
        this runner now. The other arguments are those of `ModelRunner`.

        Args:
            host: the address of this machine at which the other ranks reach this one.

        Raises:
            ValueError: as `ModelRunner`.
            RankError: a rank ended or failed meanwhile.
        """
        self._ranks = ranks
        self._host = host
        self._size = 1 + len(ranks)
        self._failure: RankError | None = None
        self._num_steps_sent = 0
        self._group = TPGroup()
        # Also at the interpreter's end, and when nobody closes this runner.
        self._end_ranks = weakref.finalize(self, _end, ranks)
        try:
            self._group = self._meet(
                ModelOrder(
                    checkpoint_dir=str(checkpoint_dir),
                    engine_config=engine_config.model_dump_json(),
                    dtype=dtype,
                    device=device,
                    quantization=quantization,
                    random_weights=random_weights,
                )
            )
            self._runner = ModelRunner(
                checkpoint_dir,
                engine_config,
                dtype=dtype,
                device=device,
                quantization=quantization,
                random_weights=random_weights,
                group=self._group,
            )
            for rank in ranks:
                rank.receive(RankReady, timeout_s=LOADING_TIMEOUT_S)
        except BaseException as error:
            self._give_up(error)
            raise

    @property
    def num_blocks(self) -> int:
        return self._runner.num_blocks

    @property
    def block_size(self) -> int:
        return self._runner.block_size

    @property
    def max_model_len(self) -> int:
        return self._runner.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._runner.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._runner.eos_token_ids

    @property
    def default_max_num_batched_tokens(self) -> int:
        return self._runner.default_max_num_batched_tokens

    @property
    def min_prompt_tokens(self) -> int:
        return self._runner.min_prompt_tokens

    @property
    def num_layers_apart(self) -> int:
        return self._runner.num_layers_apart

    @property
    def process_ids(self) -> list[int]:
        """Of the other ranks, in their order."""
        return [rank.process_id for rank in self._ranks]

    @property
    def start_seconds(self) -> Mapping[str, float]:
        """Of rank 0; its parts include waiting for the others'."""
        return self._runner.start_seconds

    def describe(self) -> str:
        return f"{self._size} ranks, each {self._runner.describe()}"

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """As `ModelRunner.execute`, on all ranks.

        Raises:
            RankError: a rank ended, failed, or did not do its part in time; the group is over.
        """
        if self._failure is not None:
            raise self._failure
        try:
            self._send(StepOrder.of(inputs))
            return self._runner.execute(inputs)
        except BaseException as error:
            self._give_up(error)
            raise

    @property
    def num_adapter_slots(self) -> int:
        """See `AdapterHost`, as for the next two."""
        return self._runner.num_adapter_slots

    def read_adapter(self, folder: Path) -> LoadedAdapter:
        return self._runner.read_adapter(folder)

    def install_adapter(self, slot: int, adapter: LoadedAdapter, layer_index: int) -> None:
        """The ranks need not have the files: each is sent its part.

        Raises:
            RankError: as `execute`.
        """
        if self._failure is not None:
            raise self._failure
        parts = self._runner.adapter_parts(adapter.layers[layer_index])
        try:
            self._runner.install_pairs(slot, layer_index, parts[0])
            for rank, part in zip(self._ranks, parts[1:], strict=True):
                order = AdapterOrder(slot, layer_index, packed_pairs(part))
                rank.send(order, timeout_s=STEP_TIMEOUT_S)
        except BaseException as error:
            self._give_up(error)
            raise

    def interrupt(self) -> None:
        """Ranks compute a step to its end: they would have to agree where to leave it."""

    def forget_interrupt(self) -> None:
        """Nothing was asked for."""

    def check_health(self) -> None:
        """Notices a rank that ended; one that hangs is noticed by the next step.

        Raises:
            RankError: the group is over.
        """
        if self._failure is not None:
            raise self._failure
        for rank in self._ranks:
            rank.check()

    def close(self) -> None:
        """End the other ranks. Nothing can be executed afterwards."""
        self._failure = self._failure or RankError("the ranks were ended")
        self._end_group()

    def _meet(self, model: ModelOrder) -> TPGroup:
        """Tell the other ranks what to load, once all have started, and join them."""
        device = find_device(model.device)
        for rank in self._ranks:
            rank.receive(RankStarted, timeout_s=STARTING_TIMEOUT_S)
        meeting = Rendezvous.open(self._host, size=self._size, timeout_s=STARTING_TIMEOUT_S)
        for rank in self._ranks:
            order = RankOrder(
                rank=rank.rank,
                size=self._size,
                host=meeting.host,
                port=meeting.port,
                timeout_s=STEP_TIMEOUT_S,
                device_index=rank.device_index,
                model=model,
            )
            rank.send(order, timeout_s=STEP_TIMEOUT_S)
        return TPGroup.join(
            meeting,
            rank=0,
            size=self._size,
            device=device,
            timeout_s=STEP_TIMEOUT_S,
            host=self._host,
        )

    def _send(self, order: StepOrder) -> None:
        """Once every rank has done the step before: it mostly has, while tokens were chosen."""
        if self._num_steps_sent:
            for rank in self._ranks:
                rank.receive(StepDone, timeout_s=STEP_TIMEOUT_S)
        frame = encode_frame(order)
        for rank in self._ranks:
            rank.send_bytes(frame, timeout_s=STEP_TIMEOUT_S)
        self._num_steps_sent += 1

    def _end_group(self) -> None:
        self._group.leave()
        self._end_ranks()

    def _give_up(self, error: BaseException) -> None:
        """End the group; raises a `RankError` where another rank is to blame for the error."""
        is_anothers = isinstance(error, GroupError | RankError | OSError)
        reason = _blame(self._ranks) if is_anothers else None
        self._failure = RankError(reason or f"rank 0 failed: {error}")
        self._end_group()
        if reason is not None:
            raise self._failure from error


def _blame(ranks: Sequence[RankLink]) -> str | None:
    """What went wrong on another rank: its own doing first, its silence second."""
    deadline = time.monotonic() + _SETTLING_TIMEOUT_S
    for rank in ranks:
        # What a rank has said is heard also when an earlier one, that hangs, took all the time.
        rank.settle(max(deadline, time.monotonic() + _HEARING_TIMEOUT_S))
        reason = rank.fault()
        if reason is not None:
            return reason
    silences = [rank.silence() for rank in ranks]
    return next((silence for silence in silences if silence is not None), None)


def _end(ranks: Sequence[RankLink]) -> None:
    for rank in ranks:
        rank.end()
