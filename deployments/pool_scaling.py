"""How many replicas a model's pool should have, by its work; and why, in words.

Pure: time and load come in, a decision goes out. `autoscaling_policy` feeds it from a running
cluster, `scripts.simulate_autoscaling` from a simulated one.

The unit is the slot: room for one sequence that is served well. What needs slots soon is the
arrival rate times the time that a request stays (Little's law), which is known as soon as requests
arrive and not only when they have piled up; what waits already needs slots on top. Of arrivals a
short and a long average are kept, and the short one counts when it is higher than chance allows.
Replicas that come take their measured start time: what waits by then is made room for too.
The number goes up at once and comes down when nothing in a whole `downscale_delay_s` needed more.
"""

import math
from collections import deque
from dataclasses import dataclass

SHORT_WINDOWS_S = (2.0, 5.0, 10.0)
LONG_WINDOW_S = 60.0
# Arrivals in the short window are a change and no chance when so many standard deviations off.
_CHANGE_SIGMAS = 4.0
# Kept free beside the expected sequences, in standard deviations of their number: a pool of 10
# slots needs a larger part of them than one of 10,000.
_SLACK_SIGMAS = 2.0
_SMALL_PART = 0.05  # of the replicas: for so few less nothing is changed
_STAY_MEMORY_S = 300.0  # how long finished requests count in the time that a request stays
_MIN_FINISHED = 3.0  # before that time is believed
_LEAST_DOWNSCALE_DELAY_S = 60.0
# What waits is to be served within the time of a start, and this at least: slots for all of it at
# once come when it is gone.
_LEAST_BACKLOG_S = 10.0
_STARTS_KEPT = 4.0  # a replica that is not needed is kept for so many times its start
_LONGEST_START_S = 900.0  # what takes longer has waited for a place
_START_MEMORY = 0.3  # weight of the newest start


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSettings:
    """What the operator decides about one pool."""

    min_replicas: int
    max_replicas: int
    slots_per_replica: float  # until a replica has reported its own
    max_utilization: float = 0.9  # of the slots, in a pool so large that chance is nothing
    downscale_delay_s: float | None = None  # None: in proportion to the time of a start
    idle_before_zero_s: float = 300.0  # without any request; then zero, where that is allowed
    prefill_wait_s: float = 2.0  # of prompt tokens that wait
    start_s: float = 30.0  # how long a replica takes to come, until that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """The state of a pool's running replicas together, and what arrived since the last report."""

    num_replicas: int  # running and reporting
    num_slots: float = 0.0  # sequences that they serve well, together
    num_running: float = 0.0
    num_waiting: float = 0.0  # in the replicas' queues
    num_held: float = 0.0  # outside of them, because there is none
    num_arrived: float = 0.0  # requests, since the last report
    num_used_blocks: float = 0.0  # KV blocks that sequences own
    num_blocks: float = 0.0
    num_prefill_tokens: float = 0.0  # of prompts that wait to be computed
    prefill_tokens_per_s: float = 0.0  # that the replicas have shown, together; 0: not measured

    @property
    def num_requests(self) -> float:
        return self.num_running + self.num_waiting + self.num_held


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many replicas there should be, the starting ones included."""

    num_replicas: int
    reason: str


class _Arrivals:
    """Arrivals per report, for as long as the long window."""

    def __init__(self) -> None:
        self._totals: deque[tuple[float, float, float]] = deque([(-math.inf, 0.0, 0.0)])

    def add(self, now_s: float, elapsed_s: float, number: float) -> None:
        """So many came in the last so many seconds."""
        _, total_s, total = self._totals[-1]
        self._totals.append((now_s, total_s + elapsed_s, total + number))
        while self._totals[1][0] <= now_s - LONG_WINDOW_S:
            self._totals.popleft()

    def since(self, since_s: float) -> tuple[float, float]:
        """How many came after this moment, in how many seconds."""
        _, last_s, last = self._totals[-1]
        for until_s, total_s, total in reversed(self._totals):
            if until_s <= since_s:
                return last - total, last_s - total_s
        raise AssertionError("the first entry is older than any moment")

    def all(self) -> tuple[float, float]:
        """The same of the long window."""
        (_, first_s, first), (_, last_s, last) = self._totals[0], self._totals[-1]
        return last - first, last_s - first_s


class _Peak:
    """The highest of the numbers of a time that moves along."""

    def __init__(self) -> None:
        self._falling: deque[tuple[float, int]] = deque()  # none is below a later one

    def add(self, now_s: float, number: int, *, keep_s: float) -> int:
        """Take a number in; the highest of the last `keep_s`."""
        while self._falling and self._falling[-1][1] <= number:
            self._falling.pop()
        self._falling.append((now_s, number))
        while self._falling[0][0] < now_s - keep_s:
            self._falling.popleft()
        return self._falling[0][1]

    def clear(self) -> None:
        self._falling.clear()


class PoolScaler:
    """Decides for one pool. Call `decide` every second or so; it remembers what it was told."""

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
        self._start_s = settings.start_s
        self._slots_each = max(1.0, settings.slots_per_replica)  # as last reported
        self._arrivals = _Arrivals()
        self._last_s: float | None = None
        self._last_load = PoolLoad(num_replicas=0)
        self._busy_slot_s = 0.0  # with a memory of _STAY_MEMORY_S, as the next one
        self._num_finished = 0.0
        self._idle_since_s: float | None = None
        self._wanted = _Peak()
        self._awaited: deque[float] = deque()  # when each replica that is starting was wanted

    @property
    def start_s(self) -> float:
        """How long a replica takes from being wanted to its first report, as last measured."""
        return self._start_s

    @property
    def downscale_delay_s(self) -> float:
        """How long a replica is kept that is not needed: what it costs to have it back counts."""
        configured = self._settings.downscale_delay_s
        if configured is not None:
            return configured
        return max(_LEAST_DOWNSCALE_DELAY_S, _STARTS_KEPT * self._start_s)

    def decide(self, now_s: float, load: PoolLoad, *, num_target: int) -> Decision:
        """The newest state of the pool becomes a decision.

        Args:
            now_s: of any clock that does not go back.
            num_target: how many replicas are being kept now, the starting ones included.
        """
        if self._last_s is None and num_target:
            self._peak(now_s, num_target)  # whoever decided before had a reason
        self._observe(now_s, load, num_target)
        settings = self._settings
        wanted, reason = self._needed_now(now_s, load)
        if wanted > settings.max_replicas:
            reason = f"{reason}; max_replicas is {settings.max_replicas}"
        wanted = min(max(wanted, settings.min_replicas), settings.max_replicas)
        if wanted == 0:
            self._wanted.clear()  # idleness has its own, longer delay
            return Decision(num_replicas=0, reason=reason)
        kept = self._peak(now_s, wanted)
        if wanted < num_target and kept > num_target * (1 - _SMALL_PART):
            kept = max(kept, min(num_target, settings.max_replicas))
        if kept > wanted:
            reason = f"{reason}; more were needed in the last {self.downscale_delay_s:.0f} s"
        return Decision(num_replicas=kept, reason=reason)

    def note_start(self, took_s: float) -> None:
        """A replica came so long after it was wanted. `decide` notices by itself, where it is asked
        meanwhile."""
        self._start_s += _START_MEMORY * (min(took_s, _LONGEST_START_S) - self._start_s)

    def _peak(self, now_s: float, wanted: int) -> int:
        return self._wanted.add(now_s, wanted, keep_s=self.downscale_delay_s)

    # -- what is known -------------------------------------------------------------------------

    def _observe(self, now_s: float, load: PoolLoad, num_target: int) -> None:
        elapsed_s = 0.0 if self._last_s is None else now_s - self._last_s
        self._time_starts(now_s, load.num_replicas, num_target)
        if elapsed_s > 0:
            self._arrivals.add(now_s, elapsed_s, load.num_arrived)
            self._measure_stay(elapsed_s, load)
        if load.num_requests > 0 or load.num_arrived > 0:
            self._idle_since_s = None
        elif self._idle_since_s is None or not (load.num_replicas and self._last_load.num_replicas):
            self._idle_since_s = now_s  # a replica that loads, or has just come, is not idle
        self._last_s, self._last_load = now_s, load

    def _time_starts(self, now_s: float, num_running: int, num_target: int) -> None:
        """Replicas come in the order in which they were wanted."""
        num_awaited = max(0, num_target - num_running)
        num_came = num_running - self._last_load.num_replicas
        for _ in range(min(max(num_came, 0), len(self._awaited))):
            self.note_start(now_s - self._awaited.popleft())
        while len(self._awaited) > num_awaited:
            self._awaited.pop()
        while len(self._awaited) < num_awaited:
            self._awaited.append(now_s)

    def _measure_stay(self, elapsed_s: float, load: PoolLoad) -> None:
        """Little's law: time spent running, over the requests that spent it. Those that ended
        spent all of theirs; of those that came in addition half is counted."""
        last = self._last_load
        num_ended = last.num_requests + load.num_arrived - load.num_requests
        grown = load.num_running - last.num_running
        fade = math.exp(-elapsed_s / _STAY_MEMORY_S)
        running = (load.num_running + last.num_running) / 2
        self._busy_slot_s = fade * self._busy_slot_s + running * elapsed_s
        self._num_finished = max(0.0, fade * self._num_finished + num_ended + grown / 2)

    @property
    def _stay_s(self) -> float | None:
        """How long a request runs; None until some have ended."""
        if self._num_finished < _MIN_FINISHED:
            return None
        return self._busy_slot_s / self._num_finished

    def _rate(self, now_s: float) -> tuple[float, bool]:
        """Requests per second to reckon with, and whether they have just become more."""
        number, elapsed_s = self._arrivals.all()
        if not elapsed_s:
            return 0.0, False
        rate, has_risen = number / elapsed_s, False
        for window_s in SHORT_WINDOWS_S:
            recent, recent_s = self._arrivals.since(now_s - window_s)
            before_s = elapsed_s - recent_s
            if not recent_s or before_s < window_s:
                continue
            expected = (number - recent) / before_s * recent_s
            if recent > expected + _CHANGE_SIGMAS * math.sqrt(max(expected, 1.0)):
                rate, has_risen = max(rate, recent / recent_s), True
        return rate, has_risen

    # -- what follows --------------------------------------------------------------------------

    def _needed_now(self, now_s: float, load: PoolLoad) -> tuple[int, str]:
        settings = self._settings
        if self._idle_since_s is not None:
            idle_s = now_s - self._idle_since_s
            if settings.min_replicas == 0 and idle_s >= settings.idle_before_zero_s:
                return 0, f"no request for {settings.idle_before_zero_s:g} s"
            least = max(settings.min_replicas, min(1, self._last_target(load)))
            return least, "no requests"
        by_slots, reason = self._by_slots(now_s, load)
        by_prefill = self._by_prefill(load)
        if by_prefill > by_slots:
            tokens, wait_s = load.num_prefill_tokens, settings.prefill_wait_s
            return by_prefill, f"{tokens:,.0f} prompt tokens wait, to be read in {wait_s:g} s"
        return max(1, by_slots), reason

    def _last_target(self, load: PoolLoad) -> int:
        return max(load.num_replicas, len(self._awaited))

    def _by_slots(self, now_s: float, load: PoolLoad) -> tuple[int, str]:
        rate, has_risen = self._rate(now_s)
        stay_s = self._stay_s
        backlog = load.num_waiting + load.num_held
        flowing = load.num_running if stay_s is None else rate * stay_s
        with_slack = max(
            flowing + _SLACK_SIGMAS * math.sqrt(flowing), flowing / self._settings.max_utilization
        )
        part = 1.0 if stay_s is None else min(1.0, stay_s / max(_LEAST_BACKLOG_S, self._start_s))
        present = max(flowing, load.num_running) + backlog * part
        slots = max(with_slack, present)
        per_replica = self._slots_per_replica(load)
        parts = [f"{load.num_running:,.0f} running"]
        if backlog:
            parts.append(f"{backlog:,.0f} waiting")
        if stay_s is not None:
            growth = ", rising" if has_risen else ""
            parts.append(f"{rate:,.3g} a second for {stay_s:,.3g} s{growth}")
        text = f"{', '.join(parts)}: {slots:,.0f} slots of {per_replica:,.0f} a replica"
        return self._ceil(slots / per_replica), text

    def _slots_per_replica(self, load: PoolLoad) -> float:
        """As configured, or as the KV cache has room for with sequences as they are."""
        if not load.num_replicas or not load.num_slots:
            return self._slots_each
        per_replica = load.num_slots / load.num_replicas
        if load.num_running >= 0.1 * load.num_slots and load.num_used_blocks > 0:
            blocks_each = load.num_used_blocks / load.num_running
            per_replica = min(per_replica, load.num_blocks / load.num_replicas / blocks_each)
        self._slots_each = max(1.0, per_replica)
        return self._slots_each

    def _by_prefill(self, load: PoolLoad) -> int:
        if not load.num_replicas or not load.prefill_tokens_per_s:
            return 0
        per_replica = load.prefill_tokens_per_s / load.num_replicas
        return self._ceil(load.num_prefill_tokens / (per_replica * self._settings.prefill_wait_s))

    def _ceil(self, replicas: float) -> int:
        """Rounded up; whatever is more than too many is one too many."""
        return math.ceil(min(replicas, self._settings.max_replicas + 1.0))
