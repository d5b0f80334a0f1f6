"""Tensor-parallel ranks as actors of Ray, in the placement group of their replica.

Ray places them and reports their end. Orders and steps go over a socket of our own
(`rank_door`): 0.03 ms for a step, where a call of an actor takes 1.4 ms. An actor ends when that
socket does, whatever it is doing, so that no rank outlives its rank 0.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from concurrent.futures import Future

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import LogSettings, ModelConfig, shoal_home
from deployments.cluster_secret import load_cluster_secret
from deployments.process_logs import write_to_stderr
from deployments.rank_door import RankDoor, enter
from models.parallel.rank_link import RankError, RankLink
from models.parallel.runner import STARTING_TIMEOUT_S
from models.parallel.worker import TPWorker, end_with

logger = logging.getLogger(__name__)


class RankActor:
    """The process of one rank above 0."""

    def follow(self, rank: int, host: str, port: int, log_settings: LogSettings) -> None:
        """Do what rank 0, at that address, says; ends with the connection.

        Raises:
            OSError, ValueError: rank 0 is not there, or there is no cluster secret.
        """
        write_to_stderr(log_settings, component=f"rank {rank}")
        secret = load_cluster_secret(shoal_home())
        connection = enter(host, port, rank=rank, process_id=os.getpid(), secret=secret)
        threading.Thread(target=end_with, args=(connection,), daemon=True).start()
        TPWorker(connection, host=ray.util.get_node_ip_address()).run()


class ActorHandle:
    """Satisfies `RankHandle`. Ray tells of the end of an actor within some 50 ms, and of the end of
    its host within half a minute; the rank's socket is quicker.
    """

    def __init__(self, actor: ray.actor.ActorHandle, following: Future[None]) -> None:
        self._actor = actor
        self._following = following
        self.pid = 0  # until it has knocked

    def ending(self) -> str | None:
        if not self._following.done():
            return None
        error = self._following.exception()
        return "has ended" if error is None else f"has ended: {_first_line(error)}"

    def wait_s(self, timeout_s: float) -> None:
        with contextlib.suppress(Exception):  # how it ended is asked for elsewhere
            self._following.result(timeout_s)

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end Ray may be gone already
            ray.kill(self._actor)


class ActorRanks:
    """Satisfies `RankStarter`: one actor in each bundle of the replica's placement group but the
    first, which is rank 0's own.
    """

    num_local_devices = 1  # Ray shows each process the GPUs of its own bundle alone

    def __init__(
        self,
        group: PlacementGroup,
        config: ModelConfig,
        *,
        host: str,
        secret: bytes,
        log_settings: LogSettings,
    ) -> None:
        """`host`: the address of this node at which the other ranks reach it."""
        self.host = host
        self._group = group
        self._config = config
        self._secret = secret
        self._log_settings = log_settings

    def start(self, size: int) -> list[RankLink]:
        """Waits until all have loaded their code."""
        door = RankDoor(self.host, secret=self._secret)
        handles = {rank: self._start_actor(rank, door.port) for rank in range(1, size)}
        try:
            admitted = door.admit(
                set(handles),
                deadline=time.monotonic() + STARTING_TIMEOUT_S,
                check=lambda: _check(handles),
            )
        except BaseException:
            for handle in handles.values():
                handle.kill()
            raise
        finally:
            door.close()
        return [_link(rank, handles[rank], *admitted[rank]) for rank in handles]

    def _start_actor(self, rank: int, port: int) -> ActorHandle:
        actor = (
            ray.remote(RankActor)
            .options(
                **rank_resources(self._config),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=rank
                ),
            )
            .remote()
        )
        following = actor.follow.remote(rank, self.host, port, self._log_settings)
        return ActorHandle(actor, following.future())


def rank_resources(config: ModelConfig) -> dict[str, float]:
    """What each rank reserves on Ray: an equal part of the replica's."""
    size = config.tensor_parallel_size
    return {"num_cpus": config.num_cpus / size, "num_gpus": config.num_gpus / size}


def _link(rank: int, handle: ActorHandle, connection: socket.socket, process_id: int) -> RankLink:
    handle.pid = process_id
    return RankLink(rank, handle, connection, device_index=0)


def _check(handles: dict[int, ActorHandle]) -> None:
    for rank, handle in handles.items():
        ending = handle.ending()
        if ending is not None:
            raise RankError(f"rank {rank} {ending}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
