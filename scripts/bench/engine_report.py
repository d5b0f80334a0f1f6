"""The engine benchmark's results as Markdown tables, and as one plot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from scripts.bench.report import Figure, table
from scripts.bench.step_parts import PARTS
from scripts.bench.step_roofline import MachineRates, StepCost

_OURS = "Shoal"
_COLOURS = ("#0b6e4f", "#c8553d", "#3b6ea5", "#9aa0a6")
_NUM_SHOWN_PARTS = 8  # of a bar; the others are one


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """One load at one concurrency, ours and the peers' by turns. Rates in output tokens/s."""

    workload: str
    concurrency: int
    ours: Figure
    first_token_ms: Figure  # medians of each repetition
    gap_ms: Figure  # p99 of each repetition
    peers: dict[str, Figure] = field(default_factory=dict)
    ratios: dict[str, Figure] = field(default_factory=dict)  # ours to theirs, pair by pair


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPrompt:
    """A long prompt among short streams. p99 in milliseconds."""

    workload: str
    concurrency: int
    long_len: int
    before_ms: Figure
    during_ms: Figure
    after_ms: Figure
    slowdown: Figure  # against the greater of before and after
    admitted_s: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class LongContext:
    """A prompt that fills the context, alone."""

    num_tokens: int
    first_token_s: Figure
    gap_ms: Figure
    kv_gib: float  # of the whole cache
    memory_gib: float  # the process at its peak, or what the GPU had allocated


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step is about."""

    num_sequences: int
    num_tokens: int
    longest_context: int

    def __str__(self) -> str:
        return f"{self.num_sequences} / {self.num_tokens} / {self.longest_context:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """One step, representative of a load."""

    workload: str
    concurrency: int
    size: StepSize
    parts_s: dict[str, float]  # with timers, the median of each part
    plain_s: float  # the median of its neighbours without timers
    cost: StepCost
    floor_s: float

    @property
    def title(self) -> str:
        return f"{self.workload}, {self.concurrency}"

    @property
    def timed_s(self) -> float:
        return sum(self.parts_s.values())

    @property
    def roofline_share(self) -> float:
        """1: nothing on this machine is faster."""
        return self.floor_s / self.plain_s


def throughput_table(rows: Sequence[Throughput], breakdowns: Sequence[Breakdown]) -> str:
    """Peers that did not take part in a load have a dash there."""
    shares = {one.title: f"{one.roofline_share:.0%}" for one in breakdowns}
    peers = list(dict.fromkeys(title for row in rows for title in row.peers))
    header = [
        "load",
        "concurrent",
        "Shoal, output tok/s",
        "first token p50, ms",
        "token gap p99, ms",
        "step's share of the roofline",
    ]
    for title in peers:
        header += [f"{title}, output tok/s", "ratio"]
    lines: list[list[object]] = []
    for row in rows:
        line: list[object] = [
            row.workload,
            row.concurrency,
            f"{row.ours}",
            f"{row.first_token_ms}",
            f"{row.gap_ms}",
            shares.get(f"{row.workload}, {row.concurrency}", "–"),
        ]
        for title in peers:
            if title in row.peers:
                line += [f"{row.peers[title]}", f"{row.ratios[title]:.2f}"]
            else:
                line += ["–", "–"]
        lines.append(line)
    return table(header, lines)


def long_prompt_table(rows: Sequence[LongPrompt]) -> str:
    header = (
        "load",
        "short streams",
        "long prompt",
        "their token gap p99 before, ms",
        "while it is read, ms",
        "after, ms",
        "ratio",
        "until its first token, s",
    )
    return table(
        header,
        [
            (
                row.workload,
                row.concurrency,
                f"{row.long_len:,}",
                f"{row.before_ms}",
                f"{row.during_ms}",
                f"{row.after_ms}",
                f"{row.slowdown:.2f}",
                f"{row.admitted_s:.2f}",
            )
            for row in rows
        ],
    )


def long_context_table(rows: Sequence[LongContext]) -> str:
    header = (
        "prompt",
        "first token, s",
        "token gap p99, ms",
        "KV cache, GiB",
        "memory at its peak, GiB",
    )
    return table(
        header,
        [
            (
                f"{row.num_tokens:,}",
                f"{row.first_token_s:.2f}",
                f"{row.gap_ms}",
                f"{row.kv_gib:.2f}",
                f"{row.memory_gib:.2f}",
            )
            for row in rows
        ],
    )


def breakdown_table(breakdowns: Sequence[Breakdown]) -> str:
    """A column for each load: milliseconds and shares of the step with timers, then what the same
    step takes without them, and its floor."""
    sizes = [str(one.size) for one in breakdowns]
    lines = [["sequences / tokens / longest context", *sizes]]
    for part in PARTS:
        line = [part]
        for one in breakdowns:
            share = one.parts_s[part] / one.timed_s
            line.append(f"{1000 * one.parts_s[part]:.2f} ({share:.0%})")
        lines.append(line)
    for title, cells in (
        ("**the step, with timers**", [f"{1000 * one.timed_s:.2f}" for one in breakdowns]),
        ("**without timers, median**", [f"{1000 * one.plain_s:.2f}" for one in breakdowns]),
        ("weights read, MB", [f"{one.cost.weight_bytes / 1e6:.1f}" for one in breakdowns]),
        ("KV read, MB", [f"{one.cost.kv_bytes / 1e6:.1f}" for one in breakdowns]),
        ("GFLOP", [f"{one.cost.flops / 1e9:.2f}" for one in breakdowns]),
        ("roofline", [f"{1000 * one.floor_s:.2f}" for one in breakdowns]),
        ("**share of the roofline**", [f"{one.roofline_share:.0%}" for one in breakdowns]),
    ):
        lines.append([title, *cells])
    header = ["one step, ms (share)", *(one.title for one in breakdowns)]
    return table(header, lines)


def draw(
    rows: Sequence[Throughput],
    breakdowns: Sequence[Breakdown],
    rates: MachineRates,
    path: Path,
) -> None:
    """Left what comes out of each load, ours and the peers'; right where a step's time goes."""
    height = 1.5 + 0.4 * max(len(rows), len(breakdowns), 4)
    canvas = Canvas(figsize=(13, height), layout="constrained")
    left, right = canvas.subplots(1, 2)
    _draw_throughput(left, rows)
    _draw_breakdowns(right, breakdowns)
    canvas.suptitle(f"this machine {rates.describe()}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_throughput(ax: Axes, rows: Sequence[Throughput]) -> None:
    systems = [_OURS, *dict.fromkeys(title for row in rows for title in row.peers)]
    thickness = 0.8 / len(systems)
    for index, system in enumerate(systems):
        found = [
            (at, row.ours if system == _OURS else row.peers.get(system))
            for at, row in enumerate(rows)
        ]
        shown = [(at, figure.median) for at, figure in found if figure is not None]
        ax.barh(
            [at + index * thickness for at, _ in shown],
            [value for _, value in shown],
            height=thickness,
            color=_COLOURS[index % len(_COLOURS)],
            label=system,
        )
    middle = thickness * (len(systems) - 1) / 2
    ax.set_yticks(
        [at + middle for at in range(len(rows))],
        [f"{row.workload}, {row.concurrency}" for row in rows],
    )
    ax.invert_yaxis()
    ax.set_xlabel("output tokens/s")
    if rows:
        ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_breakdowns(ax: Axes, breakdowns: Sequence[Breakdown]) -> None:
    weight = {part: sum(one.parts_s[part] / one.timed_s for one in breakdowns) for part in PARTS}
    largest = sorted(PARTS, key=lambda part: -weight[part])[:_NUM_SHOWN_PARTS]
    shown = [part for part in PARTS if part in largest]
    places = list(range(len(breakdowns)))
    lefts = [0.0] * len(breakdowns)
    for part in (*shown, "the rest"):
        widths = [
            1000
            * (
                one.parts_s[part]
                if part in one.parts_s
                else sum(seconds for name, seconds in one.parts_s.items() if name not in shown)
            )
            for one in breakdowns
        ]
        ax.barh(places, widths, left=lefts, height=0.6, label=part)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    floors = [1000 * one.floor_s for one in breakdowns]
    ax.scatter(floors, places, marker="|", s=250, color="black", zorder=3, label="roofline")
    ax.set_yticks(places, [one.title for one in breakdowns])
    ax.invert_yaxis()
    ax.set_xlabel("one step, ms (with timers)")
    if breakdowns:
        ax.legend(frameon=False, fontsize=8, ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
