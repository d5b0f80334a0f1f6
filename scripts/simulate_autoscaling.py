"""How long requests queue, and what the replicas cost, under our autoscaling policy and others.

    python -m scripts.simulate_autoscaling
    python -m scripts.simulate_autoscaling --peak-replicas 1000 --seeds 1
    python -m scripts.simulate_autoscaling --start-s 120 --traces burst "flash crowd"

Replays arrivals (a steady hour, a day, bursts, a flash crowd) through `deployments.pool_scaling`,
the code that the cluster runs; through Ray Serve's own default policy function, with its default
delays and with quick ones; and through an oracle that knows the future. Prints a Markdown table and
draws the number of replicas over time. Nothing is measured here: the time of a start, the requests'
stays and the arrivals are drawn from seeds, so that the same command prints the same table.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.autoscaling.policies import Oracle, Ours, ServeDefault
from scripts.autoscaling.simulated_pool import Outcome, Policy, PoolShape, SimulatedPool
from scripts.autoscaling.traces import HOUR_S, TRACES, make_trace

# Of the slots of `--peak-replicas`, in a trace's highest moment.
_PEAK_UTILIZATION = 0.9
# Serve's target of ongoing requests, as a part of the slots: what an operator would write.
_SERVE_UTILIZATION = 0.8
_NUM_PLOTTED = 400  # points of a line
_COLOURS = {"Shoal": "#0b6e4f", "Serve's default": "#c8553d", "oracle": "#9aa0a6"}


@dataclass(frozen=True, slots=True)
class Result:
    """One policy on one trace, all seeds together."""

    trace: str
    policy: str
    outcomes: tuple[Outcome, ...]

    def wait_s(self, quantile: float) -> float:
        longest = max(len(one.waits_W) for one in self.outcomes)
        waits_W = sum(np.pad(one.waits_W, (0, longest - len(one.waits_W))) for one in self.outcomes)
        ranks_W = np.cumsum(waits_W)
        return float(np.searchsorted(ranks_W, quantile * ranks_W[-1]))

    @property
    def replica_hours(self) -> float:
        return float(np.mean([one.replica_hours for one in self.outcomes]))

    @property
    def changes_per_hour(self) -> float:
        return float(np.mean([one.num_changes / len(one.target_T) for one in self.outcomes])) * 3600


def main() -> None:
    arguments = _parser().parse_args()
    shape = PoolShape(
        slots_per_replica=arguments.slots,
        start_s=arguments.start_s,
        min_replicas=1,
        max_replicas=round(arguments.peak_replicas * 2),
    )
    results = simulate(shape, arguments)
    print(
        f"{arguments.peak_replicas} replicas of {shape.slots_per_replica} slots at the peak,"
        f" a start takes {shape.start_s:g} s, seeds 0 to {arguments.seeds - 1}\n"
    )
    print(table(results))
    if arguments.plot is not None:
        draw(results, arguments.plot)
        print(f"\nplot: {arguments.plot}")


def simulate(shape: PoolShape, arguments: argparse.Namespace) -> list[Result]:
    """Every policy on every trace."""
    num_slots = arguments.peak_replicas * shape.slots_per_replica * _PEAK_UTILIZATION
    found: dict[tuple[str, str], list[Outcome]] = {}
    total = len(arguments.traces) * arguments.seeds * 4
    with tqdm(total=total, unit="run", disable=None) as bar:
        for name in arguments.traces:
            for seed in range(arguments.seeds):
                trace = make_trace(name, num_slots=num_slots, seed=seed)
                oracle = Oracle(trace, shape, seed=seed)
                for make in _policies(shape, oracle):
                    policy = make()
                    bar.set_description(f"{name}, {policy.name}")
                    pool = SimulatedPool(trace, shape, seed, oracle.first)
                    found.setdefault((name, policy.name), []).append(pool.run(policy))
                    bar.update()
    return [Result(name, policy, tuple(outcomes)) for (name, policy), outcomes in found.items()]


def _policies(shape: PoolShape, oracle: Oracle) -> list[Callable[[], Policy]]:
    return [
        lambda: Ours(shape),
        lambda: ServeDefault(shape, utilization=_SERVE_UTILIZATION, name="Serve's default"),
        lambda: ServeDefault(
            shape,
            utilization=_SERVE_UTILIZATION,
            name="Serve's, quick",
            upscale_delay_s=0,
            downscale_delay_s=120,
            look_back_s=5,
            push_s=1,
        ),
        lambda: oracle,
    ]


def table(results: Sequence[Result]) -> str:
    """Markdown; hours are also given as a ratio to Serve's default on the same trace."""
    lines = [
        "| trace | policy | waiting p50 / p99 | replica-hours | to Serve's default | changes / h |",
        "|---|---|---:|---:|---:|---:|",
    ]
    serve = {one.trace: one for one in results if one.policy == "Serve's default"}
    for one in results:
        base = serve[one.trace]
        base_s, wait_s = base.wait_s(0.99), one.wait_s(0.99)
        ratio = f"{wait_s / base_s:.2f}" if base_s else "–"
        lines.append(
            f"| {one.trace} | {one.policy} | {one.wait_s(0.5):.0f} / {wait_s:.0f} s |"
            f" {one.replica_hours:,.1f} | p99 {ratio}, hours"
            f" {one.replica_hours / base.replica_hours:.2f} | {one.changes_per_hour:.0f} |"
        )
    return "\n".join(lines)


def draw(results: Sequence[Result], path: Path) -> None:
    """One panel for each trace: what its requests need, and the replicas of three policies."""
    names = list(dict.fromkeys(one.trace for one in results))
    figure = Figure(figsize=(11, 2.4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for ax, name in zip(axes, names, strict=True):
        _draw_trace(ax, name, [one for one in results if one.trace == name])
    axes[0].legend(loc="upper right", ncols=3, frameon=False)
    axes[-1].set_xlabel("hours")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_trace(ax: Axes, name: str, results: Sequence[Result]) -> None:
    for one in results:
        if one.policy in _COLOURS:
            target_T = one.outcomes[0].target_T
            hours, highest = _thinned(target_T)
            style = {"linewidth": 1.0, "color": _COLOURS[one.policy], "label": one.policy}
            ax.plot(hours, highest, drawstyle="steps-post", **style)
    ax.set_ylabel("replicas")
    ax.set_title(name, loc="left", fontsize=10)
    ax.set_ylim(bottom=0)
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)


def _thinned(values_T: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The highest of each stretch, and where it begins in hours."""
    step = max(1, len(values_T) // _NUM_PLOTTED)
    starts = np.arange(0, len(values_T), step)
    return starts / HOUR_S, np.maximum.reduceat(values_T, starts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peak-replicas", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument("--slots", type=int, default=32, help="of a replica; default 32")
    parser.add_argument("--start-s", type=float, default=30.0, help="of a replica; default 30")
    parser.add_argument("--seeds", type=int, default=3, help="so many runs of each; default 3")
    parser.add_argument("--traces", nargs="+", choices=list(TRACES), default=list(TRACES))
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw there: .svg or .png")
    return parser


if __name__ == "__main__":
    main()
