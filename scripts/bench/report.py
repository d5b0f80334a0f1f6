"""What every benchmark prints around its numbers: the machine, the versions, the load, spreads."""

import datetime
import importlib.metadata
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share (0 … 1) of them do not exceed; 0 of none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0


@dataclass(frozen=True, slots=True)
class Figure:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __format__(self, spec: str) -> str:
        spec = spec or ".1f"
        if len(self.values) == 1:
            return format(self.values[0], spec)
        return f"{self.median:{spec}} ({min(self.values):{spec}}–{max(self.values):{spec}})"


def environment(packages: Sequence[str]) -> str:
    """Lines for the head of a report: date, CPU, cores, load and versions."""
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M} UTC · {_cpu_name()} · "
        f"{os.cpu_count()} cores · load {load}\n"
        f"Python {platform.python_version()} · {' · '.join(versions)}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
