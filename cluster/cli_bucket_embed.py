"""Following the embedding of a bucket in the terminal, file by file."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.cli_bucket_client import BucketClient, NoSuchThingError, RemoteFile, UnavailableError
from cluster.cli_error import CommandError

POLL_S = 0.5
PATIENCE_S = 60.0  # with a cluster that does not answer for a while
FILES_PER_POLL_S = 2000  # listing a bucket's files again and again must stay cheap
_FINAL_TASK = frozenset({"success", "partial_success", "failure"})
_FINAL_FILE = frozenset({"success", "failure"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOutcome:
    """How a bucket's embedding ended."""

    status: str
    num_files: int  # looked at; those that were embedded already, too
    num_embedded: int
    failed: list[RemoteFile]
    reason: str  # of the task, when it failed as a whole

    @property
    def is_success(self) -> bool:
        return self.status == "success"

    def __str__(self) -> str:
        num_same = max(0, self.num_files - self.num_embedded - len(self.failed))
        parts = [f"{self.num_embedded} embedded"]
        parts += [f"{num_same} unchanged"] if num_same else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(parts) + (f": {self.reason}" if self.reason else "")


class EmbedWatch:
    """One task that embeds a bucket, from before it began."""

    def __init__(self, client: BucketClient, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._before = {file.filename: file.updated for file in self._files()}
        self._seen: dict[str, RemoteFile] = {}  # what became of files since then
        self._failed: list[RemoteFile] = []  # all that are so now, also from before

    def follow(
        self, task_id: str, *, console: Console, say: Callable[[RemoteFile], None]
    ) -> EmbedOutcome:
        """Wait for its end; `say` hears of each file that was embedded or failed.

        Raises:
            CommandError: the cluster went away, or does not know the task any more.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("embedding", total=None)
            next_look_s = 0.0
            while True:
                task = self._task(task_id)
                done = task.get("progress") or {}
                progress.update(
                    bar, total=done.get("num_files"), completed=done.get("num_done") or 0
                )
                is_final = task["status"] in _FINAL_TASK
                if is_final or time.monotonic() >= next_look_s:
                    num_files = self._look(say)
                    next_look_s = time.monotonic() + num_files / FILES_PER_POLL_S
                if is_final:
                    return self._outcome(task)
                time.sleep(POLL_S)

    def _task(self, task_id: str) -> dict[str, Any]:
        started_s = time.monotonic()
        while True:
            try:
                return self._client.task(task_id)
            except UnavailableError as error:
                if time.monotonic() - started_s > PATIENCE_S:
                    raise CommandError(f"{error} (the task goes on when it is back)") from error
                time.sleep(POLL_S)

    def _look(self, say: Callable[[RemoteFile], None]) -> int:
        """Tell of the files that became final since the last look; how many there are."""
        try:
            files = self._files()
        except UnavailableError:
            return len(self._seen)  # the next look tells of them
        self._failed = [file for file in files if file.status == "failure"]
        for file in files:
            is_new = file.updated != self._before.get(file.filename)
            if is_new and file.status in _FINAL_FILE and self._seen.get(file.filename) != file:
                self._seen[file.filename] = file
                say(file)
        return len(files)

    def _files(self) -> list[RemoteFile]:
        try:
            return self._client.files(self._bucket)
        except NoSuchThingError:
            return []  # never embedded, or not one file yet

    def _outcome(self, task: dict[str, Any]) -> EmbedOutcome:
        num_files = (task.get("progress") or {}).get("num_files")
        return EmbedOutcome(
            status=task["status"],
            num_files=len(self._seen) if num_files is None else num_files,
            num_embedded=sum(file.status == "success" for file in self._seen.values()),
            failed=sorted(self._failed, key=lambda file: file.filename),
            reason=task.get("error_reason") or "",
        )
