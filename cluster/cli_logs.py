"""The logs of a cluster on this machine: which there are, their last lines, new lines as they come.

A log is `<home>/logs/<component>.log`, also in folders below; its name is the path without `.log`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TAIL_BLOCK_BYTES = 64 * 1024
_POLL_S = 0.25


def find_logs(logs_dir: Path, *, component: str | None = None) -> list[Path]:
    """The log files, sorted; of one component: those whose name contains it, in any case."""
    found = sorted(path for path in logs_dir.rglob("*.log") if path.is_file())
    if component is None:
        return found
    wanted = component.lower()
    return [path for path in found if wanted in log_name(path, logs_dir).lower()]


def log_name(path: Path, logs_dir: Path) -> str:
    return path.relative_to(logs_dir).with_suffix("").as_posix()


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The last lines of a file, read from its end: the size of the file does not matter."""
    with path.open("rb") as file:
        start = file.seek(0, 2)
        tail = b""
        # One line break more than lines: the break before the first of them.
        while start > 0 and tail.count(b"\n") <= num_lines:
            size = min(_TAIL_BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
    lines = tail.decode("utf-8", "replace").splitlines()
    return lines[-num_lines:] if num_lines > 0 else []


@dataclass(slots=True, kw_only=True)
class LogFollower:
    """Reads what is appended to the logs of a folder, new files included.

    Made at a moment, it starts at the end of the files that are there then.
    """

    logs_dir: Path
    component: str | None
    _offsets: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._offsets = {path: path.stat().st_size for path in self._files()}

    def poll(self) -> list[tuple[str, str]]:
        """Name and text of the whole lines that have come since the previous call."""
        return [
            (log_name(path, self.logs_dir), line)
            for path in self._files()
            for line in self._new_lines(path)
        ]

    def follow(self) -> Iterator[tuple[str, str]]:
        """Lines for ever; ends only when it is closed or interrupted."""
        while True:
            yield from self.poll()
            time.sleep(_POLL_S)

    def _files(self) -> Sequence[Path]:
        return find_logs(self.logs_dir, component=self.component)

    def _new_lines(self, path: Path) -> list[str]:
        offset = self._offsets.get(path, 0)
        with path.open("rb") as file:
            if file.seek(0, 2) < offset:  # rotated or emptied
                offset = 0
            file.seek(offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the line being written comes with the next call
        self._offsets[path] = offset + len(whole)
        return whole.decode("utf-8", "replace").splitlines()
