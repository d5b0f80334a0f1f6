"""A trace replayed against a running cluster, and what its pool did meanwhile, second by second."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from scripts.autoscaling.traces import MAX_STAY_S, Counts, Trace
from scripts.checked_requests import Ending, ask

SAMPLE_S = 1.0
TIMEOUT_S = 300.0  # of a request


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The pool at one moment, as `GET /v1/cluster` tells it."""

    at_s: float  # since the trace began
    num_wanted: int
    states: dict[str, str]  # of the replicas, by id


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    at_s: float  # since the trace began
    wait_s: float  # to the first token
    stay_s: float  # from then on
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    samples: list[Sample]
    requests: list[Request]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "LiveRun":
        raw = json.loads(path.read_text())
        return cls(
            samples=[Sample(**one) for one in raw["samples"]],
            requests=[Request(**one) for one in raw["requests"]],
        )

    @property
    def num_s(self) -> int:
        return int(self.samples[-1].at_s)

    def wanted(self) -> NDArray[np.int64]:
        """Replicas that Serve was to keep, at the end of each second."""
        return self._at_each_second([sample.num_wanted for sample in self.samples])

    def ready(self) -> NDArray[np.int64]:
        """Replicas that ran."""
        return self._at_each_second(
            [list(sample.states.values()).count("RUNNING") for sample in self.samples]
        )

    def _at_each_second(self, values: Sequence[int]) -> NDArray[np.int64]:
        times_S = np.array([sample.at_s for sample in self.samples])
        newest_T = np.searchsorted(times_S, np.arange(self.num_s) + 1.0, side="right") - 1
        return np.array(values, dtype=np.int64)[np.maximum(newest_T, 0)]

    @property
    def start_seconds(self) -> list[float]:
        """How long each replica that started meanwhile took from its first sight to running."""
        seen_s: dict[str, float] = {}
        took_s: dict[str, float] = {}
        for number, sample in enumerate(self.samples):
            for replica, state in sample.states.items():
                if state == "RUNNING" and replica in seen_s:
                    took_s.setdefault(replica, sample.at_s - seen_s[replica])
                elif state != "RUNNING" and number:
                    seen_s.setdefault(replica, sample.at_s)
        return list(took_s.values())

    def as_trace(self) -> Trace:
        """The same arrivals, and stays as they were measured, for the simulator."""
        arrivals_T = np.zeros(self.num_s, dtype=np.int64)
        for request in self.requests:
            arrivals_T[min(int(request.at_s), self.num_s - 1)] += 1
        stays_s = [max(1, round(one.stay_s)) for one in self.requests if one.problem is None]
        counts_S = np.bincount(np.minimum(stays_s, MAX_STAY_S), minlength=MAX_STAY_S + 1)[1:]
        return Trace("as measured", arrivals_T, counts_S / counts_S.sum())


async def replay(
    client: httpx.AsyncClient, model: str, arrivals_T: Counts, *, seed: int, step_s: float
) -> LiveRun:
    """Ask as the trace says, whatever becomes of it; stays are drawn as the simulator draws them.

    Args:
        client: with the API's base URL and an admin's key.
        step_s: a token's time, which makes a number of tokens of a stay.
    """
    rng = np.random.default_rng(seed)
    arrivals_s = [
        second + at
        for second, number in enumerate(arrivals_T)
        for at in np.sort(rng.random(number))
    ]
    tokens = _lengths(rng, len(arrivals_s), step_s=step_s)
    started_s = time.monotonic()
    samples: list[Sample] = []
    sampling = asyncio.create_task(_sample(client, model, samples, started_s))
    asking: list[asyncio.Task[Ending]] = []
    for number, (at_s, max_tokens) in enumerate(zip(arrivals_s, tokens, strict=True)):
        await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))
        one = ask(client, model, max_tokens=max_tokens, is_streamed=True, number=2 * number)
        asking.append(asyncio.create_task(one))
    await asyncio.sleep(max(0.0, started_s + len(arrivals_T) - time.monotonic()))
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    endings = await asyncio.gather(*asking)
    return LiveRun(samples=samples, requests=[_request(one, started_s) for one in endings])


def _lengths(rng: np.random.Generator, number: int, *, step_s: float) -> list[int]:
    """Tokens of so many requests: log-normal stays of some seconds."""
    stays_s = np.clip(rng.lognormal(np.log(5.0), 0.5, size=number), 1.0, 25.0)
    return [max(1, round(float(stay_s) / step_s)) for stay_s in stays_s]


def _request(ending: Ending, started_s: float) -> Request:
    return Request(
        at_s=ending.started_s - started_s,
        wait_s=ending.first_s,
        stay_s=ending.ended_s - ending.started_s - ending.first_s,
        problem=ending.problem,
    )


async def _sample(
    client: httpx.AsyncClient, model: str, samples: list[Sample], started_s: float
) -> None:
    while True:
        answer = await client.get("/v1/cluster")
        pools = {pool["name"]: pool for pool in answer.raise_for_status().json()["pools"]}
        pool = pools[model]
        samples.append(
            Sample(
                at_s=time.monotonic() - started_s,
                num_wanted=pool["num_wanted"],
                states={one["id"]: one["state"] for one in pool["replicas"]},
            )
        )
        await asyncio.sleep(SAMPLE_S)
