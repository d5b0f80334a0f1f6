"""A rank above 0: `python -m models.parallel.worker FD`, which follows rank 0 step by step.

It ends when its connection does, whatever it is doing: a rank that outlived rank 0 would keep the
memory of its device. Ranks that are no child processes (actors of Ray) run the same `TPWorker`.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

import msgspec
import torch

from cluster.config import EngineConfig
from models.child_process import receive_body, receive_frame, send_frame
from models.engine.devices import find_device
from models.engine.model_runner import ModelRunner
from models.native.ranks import GroupError
from models.parallel.adapter_pairs import unpacked_pairs
from models.parallel.group import LOOPBACK, Rendezvous, TPGroup
from models.parallel.messages import (
    AdapterOrder,
    RankFailed,
    RankMessage,
    RankOrder,
    RankReady,
    RankStarted,
    StepDone,
)
from models.parallel.step_order import StepOrder

logger = logging.getLogger(__name__)


class TPWorker:
    """One rank's end of the connection to rank 0."""

    def __init__(self, connection: socket.socket, *, host: str = LOOPBACK) -> None:
        """`host`: the address that the other ranks reach this one at."""
        self._connection = connection
        self._host = host

    def run(self) -> None:
        """Load what is ordered, then follow steps until the connection ends."""
        try:
            self._follow()
        except ConnectionError:
            return  # rank 0 is gone
        except Exception as error:  # the top of the process: rank 0 hears of everything
            logger.exception("this rank ends")
            message = str(error) or type(error).__name__
            with contextlib.suppress(OSError):  # rank 0 may have ended the group already
                self._say(RankFailed(message, isinstance(error, GroupError)))

    def _follow(self) -> None:
        self._say(RankStarted())
        order = receive_frame(self._connection, RankOrder, deadline=None)
        group = join(order, host=self._host)
        try:
            runner = load(order, group)
            self._say(RankReady())
            self._assist(runner)
        finally:
            group.leave()  # an actor's process goes on

    def _assist(self, runner: ModelRunner) -> NoReturn:
        while True:
            step: StepOrder | AdapterOrder = msgspec.msgpack.decode(
                receive_body(self._connection, deadline=None), type=StepOrder | AdapterOrder
            )
            if isinstance(step, AdapterOrder):
                pairs = unpacked_pairs(step.pairs, runner.dtype)
                runner.install_pairs(step.slot, step.layer_index, pairs)
                continue
            runner.assist(step)
            self._say(StepDone())

    def _say(self, message: RankMessage) -> None:
        send_frame(self._connection, message)


def join(order: RankOrder, *, host: str) -> TPGroup:
    """Meet the other ranks, from that address.

    Raises:
        ValueError: there is no such device.
        GroupError: another rank did not get so far.
    """
    device = find_device(order.model.device, order.device_index)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    meeting = Rendezvous.reach(order.host, order.port, size=order.size, timeout_s=order.timeout_s)
    return TPGroup.join(
        meeting,
        rank=order.rank,
        size=order.size,
        device=device,
        timeout_s=order.timeout_s,
        host=host,
    )


def load(order: RankOrder, group: TPGroup) -> ModelRunner:
    """This rank's part of the checkpoint.

    Raises:
        ValueError: as `ModelRunner`.
        GroupError: another rank did not get so far.
    """
    model = order.model
    return ModelRunner(
        Path(model.checkpoint_dir),
        EngineConfig.model_validate_json(model.engine_config),
        dtype=model.dtype,
        device=model.device,
        quantization=model.quantization,
        random_weights=model.random_weights,
        group=group,
    )


def end_with(connection: socket.socket) -> None:
    """End this process at once when the other end of the connection closes."""
    poller = select.poll()
    poller.register(connection, select.POLLRDHUP)
    poller.poll()
    os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: rank 0 decides
    connection = socket.socket(fileno=int(sys.argv[1]))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    TPWorker(connection).run()


if __name__ == "__main__":
    main()
