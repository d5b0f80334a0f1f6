"""Ten minutes of arrivals on a real cluster and in the simulator: do the replicas move alike?

    python -m scripts.replay_trace --plot docs/autoscaling_replay.svg
    python -m scripts.replay_trace --seconds 120 --save run.json
    python -m scripts.replay_trace --load run.json --plot again.svg      # no cluster

Starts a cluster of its own with one pool of the demo model, 0 to 3 replicas, whose engine computes
nothing and takes its time, so that the requests' stays do not depend on what else the machine does.
Streams arrive as a made-up ten minutes say: quiet, a rise to three replicas' worth, less, silence,
a burst, silence. `GET /v1/cluster` is read every second. Then the simulator that
`scripts.simulate_autoscaling` uses runs with the same arrivals, the stays and the mean start time
as they were measured, and the same settings. Says how far the numbers of replicas are apart.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cluster.config import parse_config
from deployments.pool_scaling import ScalingSettings
from scripts.autoscaling.live_pool import TIMEOUT_S, LiveRun, replay
from scripts.autoscaling.policies import Ours
from scripts.autoscaling.simulated_pool import Outcome, PoolShape, SimulatedPool
from scripts.autoscaling.traces import Counts
from scripts.bench.report import environment, quantile, table
from scripts.bench.running_cluster import API_KEY, running_cluster

MODEL = "shoal/demo-chat"
NUM_SLOTS = 4  # of a replica
MAX_REPLICAS = 3
STEP_MS = 50.0
MEAN_STAY_S = 5.6
# Each part of the time, and the part of all slots that its requests need.
_SHAPE = (
    (0.15, 0.15),
    (0.1, 0.55),
    (0.15, 0.8),
    (0.15, 0.3),
    (0.13, 0.0),
    (0.14, 0.7),
    (0.18, 0.0),
)
_SCALING = {"target_num_seqs": NUM_SLOTS, "downscale_delay_s": 30.0, "idle_before_zero_s": 20.0}
_MAX_LAG_S = 60
_NUM_SEEDS = 5
_REAL, _SIMULATED, _ARRIVALS = "#0b6e4f", "#c8553d", "#9aa0a6"


def make_arrivals(seconds: int, *, seed: int) -> Counts:
    """Requests of each second."""
    rates = [
        np.full(round(part * seconds), needed * NUM_SLOTS * MAX_REPLICAS / MEAN_STAY_S)
        for part, needed in _SHAPE
    ]
    return np.random.default_rng(seed).poisson(np.concatenate(rates)).astype(np.int64)


def make_config() -> dict[str, Any]:
    engine = {"synthetic_step_ms": STEP_MS, "max_num_seqs": NUM_SLOTS}
    return {
        "models": [
            {
                "name": MODEL,
                "source": "demo",
                "num_cpus": 0.1,
                "min_replicas": 0,
                "max_replicas": MAX_REPLICAS,
                "autoscaling": _SCALING,
                "engine": engine,
            }
        ],
        "embedders": [],
    }


def measure(arguments: argparse.Namespace) -> LiveRun:
    arrivals_T = make_arrivals(arguments.seconds, seed=arguments.seed)

    async def run(url: str) -> LiveRun:
        async with httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {API_KEY}"},
            limits=httpx.Limits(max_connections=None),
            timeout=TIMEOUT_S,
        ) as client:
            step_s = STEP_MS / 1000
            return await replay(client, MODEL, arrivals_T, seed=arguments.seed, step_s=step_s)

    with running_cluster(make_config(), port=arguments.port) as cluster:
        return asyncio.run(run(cluster.url))


def simulate(run: LiveRun) -> list[Outcome]:
    """The same arrivals, from several seeds of stays and starts."""
    started = run.start_seconds
    shape = PoolShape(
        slots_per_replica=NUM_SLOTS,
        start_s=float(np.mean(started)) if started else 30.0,
        min_replicas=0,
        max_replicas=MAX_REPLICAS,
    )
    scaling = parse_config(make_config()).models[0].autoscaling
    settings = ScalingSettings(
        min_replicas=0,
        max_replicas=MAX_REPLICAS,
        slots_per_replica=NUM_SLOTS,
        max_utilization=scaling.max_utilization,
        downscale_delay_s=scaling.downscale_delay_s,
        idle_before_zero_s=scaling.idle_before_zero_s,
        start_s=scaling.expected_start_s,
    )
    trace = run.as_trace()
    return [
        SimulatedPool(trace, shape, seed, int(run.ready()[0])).run(Ours(shape, settings))
        for seed in range(_NUM_SEEDS)
    ]


def difference(real_T: NDArray[np.int64], simulated_T: NDArray[np.int64], lag_s: int = 0) -> float:
    """Mean absolute difference, where the real curve comes `lag_s` later than the simulated."""
    first, second = (real_T, simulated_T) if lag_s >= 0 else (simulated_T, real_T)
    shift = abs(lag_s)
    return float(np.abs(first[shift:] - second[: len(second) - shift]).mean())


def lag_s(real_T: NDArray[np.int64], simulated_T: NDArray[np.int64]) -> int:
    """By how many seconds the real curve is later: so shifted, they differ least."""
    most = min(_MAX_LAG_S, len(real_T) // 2)
    lags = sorted(range(-most, most + 1), key=abs)
    return min(lags, key=lambda lag: difference(real_T, simulated_T, lag))


def report(run: LiveRun, outcomes: Sequence[Outcome]) -> str:
    """How far they are from each other; of the simulation the mean of all seeds."""
    rows: list[list[object]] = []
    curves = {
        "replicas wanted": (run.wanted(), [one.target_T for one in outcomes]),
        "replicas that run": (run.ready(), [one.ready_T for one in outcomes]),
    }
    for name, (real_T, simulated) in curves.items():
        same = np.mean([(real_T == one_T).mean() for one_T in simulated])
        rows.append(
            [
                name,
                f"{real_T.mean():.2f}",
                f"{np.mean([one_T.mean() for one_T in simulated]):.2f}",
                f"{np.mean([difference(real_T, one_T) for one_T in simulated]):.2f}",
                f"{100 * same:.0f}%",
                f"{np.median([lag_s(real_T, one_T) for one_T in simulated]):.0f} s",
            ]
        )
    header = ["", "mean, real", "mean, simulated", "mean absolute difference", "equal for"]
    header.append("the real one is later by")
    good = [one for one in run.requests if one.problem is None]
    waits_s = [one.wait_s for one in good]
    started = run.start_seconds
    simulated_p99 = np.mean([one.waiting_time_s(0.99) for one in outcomes])
    return (
        f"{table(header, rows)}\n\n"
        f"{len(run.requests)} requests, {len(run.requests) - len(good)} of them not whole; "
        f"{len(started)} starts, {min(started, default=0):.0f} to {max(started, default=0):.0f} s; "
        f"a request stays {np.mean([one.stay_s for one in good]):.1f} s.\n"
        f"Waiting for the first token: p50 {quantile(waits_s, 0.5):.1f} s, "
        f"p99 {quantile(waits_s, 0.99):.1f} s; simulated p99 {simulated_p99:.1f} s."
    )


def draw(run: LiveRun, outcomes: Sequence[Outcome], path: Path) -> None:
    """Replicas wanted and running, above the requests that arrive."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    wanted, ready, arrivals = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 1])
    _draw_pair(wanted, "wanted", run.wanted(), [one.target_T for one in outcomes])
    _draw_pair(ready, "running", run.ready(), [one.ready_T for one in outcomes])
    arrivals_T = run.as_trace().arrivals_T
    arrivals.bar(np.arange(len(arrivals_T)), arrivals_T, width=1.0, color=_ARRIVALS)
    arrivals.set_ylabel("arrivals")
    arrivals.set_xlabel("seconds")
    wanted.legend(loc="upper right", ncols=2, frameon=False)
    for ax in (wanted, ready, arrivals):
        ax.margins(x=0)
        ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_pair(
    ax: Axes, name: str, real_T: NDArray[np.int64], simulated: Sequence[NDArray[np.int64]]
) -> None:
    for number, one_T in enumerate(simulated):
        label = f"simulated, {len(simulated)} seeds" if number == 0 else None
        ax.step(
            np.arange(len(one_T)), one_T, where="post", color=_SIMULATED, alpha=0.35, label=label
        )
    ax.step(np.arange(len(real_T)), real_T, where="post", color=_REAL, linewidth=1.8, label="real")
    ax.set_ylabel(f"replicas {name}")
    ax.set_yticks(range(MAX_REPLICAS + 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=600, help="of the trace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw there: .svg or .png")
    parser.add_argument("--save", type=Path, metavar="FILE", help="what was seen, as JSON")
    parser.add_argument("--load", type=Path, metavar="FILE", help="what was seen before")
    parser.add_argument("--port", type=int, default=8340)
    arguments = parser.parse_args()
    if arguments.load is not None:
        run = LiveRun.load(arguments.load)
    else:
        print(environment(("ray",)), "\n", flush=True)
        run = measure(arguments)
    if arguments.save is not None:
        run.save(arguments.save)
    outcomes = simulate(run)
    print(report(run, outcomes))
    if arguments.plot is not None:
        draw(run, outcomes, arguments.plot)
        print(f"\nplot: {arguments.plot}")
    problems = [one.problem for one in run.requests if one.problem is not None]
    for problem in problems[:5]:
        print(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
