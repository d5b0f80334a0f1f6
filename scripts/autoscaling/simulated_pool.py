"""A pool of replicas in simulated seconds: requests queue, run, and end; replicas start and drain.

Requests are counted, not followed one by one, so that a day of a thousand replicas takes seconds:
a second's requests get their stays drawn from a distribution when they are admitted. They wait in
one queue, first come, first served. A replica costs from the decision that starts it until its last
request has ended.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scripts.autoscaling.traces import Counts, Trace

_START_SIGMA = 0.2  # of a start time's logarithm


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    slots_per_replica: int
    start_s: float  # a replica's start takes about this long
    min_replicas: int
    max_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """What a policy may see, at the end of a second."""

    now_s: float
    num_ready: int
    num_target: int  # ready and starting
    num_running: int
    num_waiting: int
    num_arrived: int  # in this second


class Policy(Protocol):
    name: str

    def wanted(self, state: PoolState) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    policy: str
    waits_W: Counts  # how many requests waited 0, 1, 2 … s
    replica_hours: float
    num_changes: int  # of the wanted number
    target_T: NDArray[np.int64]
    ready_T: NDArray[np.int64]
    waiting_T: NDArray[np.int64]

    def waiting_time_s(self, quantile: float) -> float:
        """The whole second within which a request of this rank got its slot; 0: at once."""
        ranks_W = np.cumsum(self.waits_W)
        return float(np.searchsorted(ranks_W, quantile * ranks_W[-1]))


@dataclass(slots=True)
class _Draining:
    """Replicas that take nothing new, with what runs on them."""

    num_replicas: int
    num_at_first: int
    ending_S: Counts

    def num_left(self) -> float:
        """How many still have a request, were these spread by chance."""
        if not self.num_at_first:
            return 0.0
        part = self.ending_S.sum() / self.num_at_first
        each = self.num_at_first / self.num_replicas
        return (
            float(self.num_replicas * (1 - (1 - part) ** each)) if part < 1 else self.num_replicas
        )


@dataclass(slots=True)
class SimulatedPool:
    trace: Trace
    shape: PoolShape
    seed: int
    num_ready: int
    _starting: Counts = field(init=False)  # by the second in which they are ready
    _ending_S: Counts = field(init=False)
    _queue: deque[tuple[int, int]] = field(default_factory=deque)  # since, how many
    _num_waiting: int = 0
    _draining: list[_Draining] = field(default_factory=list)

    def run(self, policy: Policy) -> Outcome:
        """The whole trace under one policy. Every policy meets the same arrivals."""
        rng = np.random.default_rng([self.seed, 99])
        arrivals_T = self.trace.arrivals_T
        num_s = len(arrivals_T)
        self._ending_S = np.zeros(len(self.trace.stay_S), dtype=np.int64)
        self._starting = np.zeros(num_s + 100 * int(self.shape.start_s + 1), dtype=np.int64)
        waits_W = np.zeros(num_s + 1, dtype=np.int64)
        target_T = np.zeros(num_s, dtype=np.int64)
        ready_T = np.zeros(num_s, dtype=np.int64)
        waiting_T = np.zeros(num_s, dtype=np.int64)
        replica_s, target, num_changes = 0.0, self.num_ready, 0
        for now in range(num_s):
            self._end_a_second(now)
            self._arrive(now, int(arrivals_T[now]))
            self._admit(now, waits_W, rng)
            state = PoolState(
                now_s=now + 1.0,
                num_ready=self.num_ready,
                num_target=target,
                num_running=int(self._ending_S.sum()),
                num_waiting=self._num_waiting,
                num_arrived=int(arrivals_T[now]),
            )
            wanted = min(
                max(policy.wanted(state), self.shape.min_replicas), self.shape.max_replicas
            )
            num_changes += wanted != target
            self._scale(now, wanted - target, rng)
            target = wanted
            replica_s += target + sum(one.num_left() for one in self._draining)
            target_T[now], ready_T[now] = target, self.num_ready
            waiting_T[now] = self._num_waiting
        for since, number in self._queue:  # who waits at the end has waited so long
            waits_W[num_s - since] += number
        return Outcome(
            policy=policy.name,
            waits_W=waits_W,
            replica_hours=replica_s / 3600,
            num_changes=num_changes,
            target_T=target_T,
            ready_T=ready_T,
            waiting_T=waiting_T,
        )

    def _end_a_second(self, now: int) -> None:
        self._ending_S = np.append(self._ending_S[1:], 0)
        for one in self._draining:
            one.ending_S = np.append(one.ending_S[1:], 0)
        self._draining = [one for one in self._draining if one.ending_S.any()]
        self.num_ready += int(self._starting[now])
        self._starting[now] = 0

    def _arrive(self, now: int, number: int) -> None:
        if number:
            self._queue.append((now, number))
            self._num_waiting += number

    def _admit(self, now: int, waits_W: Counts, rng: np.random.Generator) -> None:
        num_free = self.num_ready * self.shape.slots_per_replica - int(self._ending_S.sum())
        num_admitted = 0
        while num_free > num_admitted and self._queue:
            since, number = self._queue.popleft()
            now_admitted = min(number, num_free - num_admitted)
            num_admitted += now_admitted
            waits_W[now - since] += now_admitted
            if now_admitted < number:
                self._queue.appendleft((since, number - now_admitted))
        self._num_waiting -= num_admitted
        if num_admitted:
            self._ending_S += rng.multinomial(num_admitted, self.trace.stay_S)

    def _scale(self, now: int, change: int, rng: np.random.Generator) -> None:
        if change > 0:
            start_s = self.shape.start_s * np.exp(rng.normal(0, _START_SIGMA, size=change))
            at = now + np.maximum(1, np.rint(start_s)).astype(np.int64)
            np.add.at(self._starting, np.minimum(at, len(self._starting) - 1), 1)
        elif change < 0:
            self._drain(self._unstart(now, -change), rng)

    def _unstart(self, now: int, number: int) -> int:
        """Take back starts, the latest first; how many replicas are still to go."""
        for at in np.flatnonzero(self._starting)[::-1]:
            taken = min(number, int(self._starting[at]))
            self._starting[at] -= taken
            number -= taken
            if not number:
                break
        return number

    def _drain(self, number: int, rng: np.random.Generator) -> None:
        number = min(number, self.num_ready)
        if not number:
            return
        moved_S = rng.binomial(self._ending_S, number / self.num_ready)
        self._ending_S -= moved_S
        self.num_ready -= number
        if moved_S.any():
            self._draining.append(_Draining(number, int(moved_S.sum()), moved_S))
