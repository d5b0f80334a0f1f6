"""Tasks while everything around them dies; afterwards each unit has one result.

    .venv/bin/python -m tests.cluster.task_queue.crash_run --tasks 12 --units 600 --kills 8

Worker processes are killed with SIGKILL again and again, one is frozen for longer than its lease
and thawed, the server is killed and started again, and in the end the workers are sent SIGTERM.
"""

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ServiceUnavailableError
from cluster.redis_client import RedisClient, connect
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.task import NewTask, TaskRecord, TaskStatus
from tests.cluster.task_queue.crash_worker import LEASE_S, RAN_KEY
from tests.cluster.task_queue.tasks import COUNT, Count, is_empty
from tests.redis_server import RedisServer, patient_config

NUM_WORKERS = 3
TIMEOUT_S = 240.0


@dataclass(kw_only=True)
class CrashReport:
    """What was seen; `problems` is empty when all is well."""

    num_units: int
    num_executed: int
    num_attempts: int
    num_losses: int
    was_fenced: bool
    seconds: float
    problems: list[str]


@dataclass
class Workers:
    """Processes by name, each with its log."""

    url: str
    folder: Path
    unit_s: float
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    num_started: int = 0

    def start_one(self) -> None:
        name = f"w{self.num_started}"
        self.num_started += 1
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.cluster.task_queue.crash_worker"),
                    *(self.url, name, str(self.unit_s)),
                ],
                stdout=log,
                stderr=log,
            )

    def kill_one(self) -> None:
        name = random.choice(sorted(self.processes))
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def terminate_all(self) -> list[str]:
        """What was wrong with their ends."""
        for name, process in self.processes.items():
            while "ready" not in self.log(name):
                time.sleep(0.02)  # before that, the signal would end it as it ends anything
            process.send_signal(signal.SIGTERM)
        problems = []
        for name, process in self.processes.items():
            if process.wait(timeout=120) != 0:
                problems.append(f"{name} ended with {process.returncode}: {self.log(name)[-2000:]}")
        self.processes.clear()
        return problems


async def crash_run(
    *, num_tasks: int, num_units: int, num_kills: int, unit_s: float = 0.001
) -> CrashReport:
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="shoal-crash-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        workers = Workers(server.url, Path(folder), unit_s)
        try:
            async with connect(patient_config(server.url)) as redis, asyncio.timeout(TIMEOUT_S):
                queue = TaskQueue(redis)
                records = [
                    await queue.enqueue(
                        NewTask(tenant=f"t{number % 3}", body=Count(num_items=num_units))
                    )
                    for number in range(num_tasks)
                ]
                for _ in range(NUM_WORKERS):
                    workers.start_one()
                fenced = await _break_everything(server, workers, queue, num_kills, records)
                ended = await _wait_for_all(queue, records)
                problems = workers.terminate_all()
                problems += await _problems(queue, ended, num_units)
                return CrashReport(
                    num_units=num_tasks * num_units,
                    num_executed=int(await redis.execute("GET", RAN_KEY)),
                    num_attempts=sum(record.num_attempts for record in ended),
                    num_losses=sum(record.num_losses for record in ended),
                    was_fenced=fenced,
                    seconds=time.perf_counter() - started_s,
                    problems=problems,
                )
        finally:
            for process in workers.processes.values():
                process.kill()
                process.wait()
            server.kill()


async def _break_everything(
    server: RedisServer,
    workers: Workers,
    queue: TaskQueue,
    num_kills: int,
    records: list[TaskRecord],
) -> bool:
    """Returns whether the frozen worker was fenced off. Things happen as the work goes along."""
    num_units = sum(record.decode_body(Count).num_items for record in records)
    num_events = num_kills + 2
    was_fenced = False
    for event in range(1, num_events + 1):
        await _wait_for_units(queue.redis, num_units * event // (num_events + 2))
        if event == 2:
            was_fenced = await _freeze_one(workers, queue)
        elif event == 4:
            server.kill()
            server.start()
        else:
            workers.kill_one()
            workers.start_one()
    return was_fenced


async def _freeze_one(workers: Workers, queue: TaskQueue) -> bool:
    frozen = await _frozen_while_it_works(workers, queue)
    while True:  # until another has claimed it
        if (await queue.get(frozen.tenant, frozen.task_id)).worker != frozen.worker:
            break
        await asyncio.sleep(LEASE_S / 10)
    workers.processes[frozen.worker].send_signal(signal.SIGCONT)
    deadline_s = time.monotonic() + 10
    while "was claimed by another worker" not in workers.log(frozen.worker):
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(0.05)
    return True


async def _frozen_while_it_works(workers: Workers, queue: TaskQueue) -> TaskRecord:
    while True:
        for record in await _running(queue):
            if record.worker not in workers.processes:
                continue
            process = workers.processes[record.worker]
            process.send_signal(signal.SIGSTOP)
            now = await queue.get(record.tenant, record.task_id)
            if now.status is TaskStatus.RUNNING and now.worker == record.worker:
                return now
            process.send_signal(signal.SIGCONT)  # it had just ended the task


async def _running(queue: TaskQueue) -> list[TaskRecord]:
    while True:
        pages = [
            await queue.find(tenant, [COUNT], [TaskStatus.RUNNING]) for tenant in ("t0", "t1", "t2")
        ]
        found = [record for page in pages for record in page.records]
        if found:
            return found
        await asyncio.sleep(0.05)


async def _wait_for_units(redis: RedisClient, num_units: int) -> None:
    while True:
        try:
            if int(await redis.execute("GET", RAN_KEY) or 0) >= num_units:
                return
        except ServiceUnavailableError:
            pass  # the first command after the server was killed
        await asyncio.sleep(0.02)


async def _wait_for_all(queue: TaskQueue, records: list[TaskRecord]) -> list[TaskRecord]:
    return [await queue.wait_until_final(record.tenant, record.task_id) for record in records]


async def _problems(queue: TaskQueue, ended: list[TaskRecord], num_units: int) -> list[str]:
    problems = []
    for record in ended:
        if record.status is not TaskStatus.SUCCEEDED:
            problems.append(f"task {record.task_id} is {record.status}: {record.error}")
        items = await queue.items(record.task_id)
        if set(items) != {str(number) for number in range(num_units)}:
            problems.append(f"task {record.task_id} has {len(items)} results of {num_units}")
    if not await is_empty(queue):
        problems.append("something is left in the streams, their pending lists or the lanes")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--units", type=int, default=600)
    parser.add_argument("--kills", type=int, default=8)
    options = parser.parse_args()
    report = asyncio.run(
        crash_run(num_tasks=options.tasks, num_units=options.units, num_kills=options.kills)
    )
    print(report)
    sys.exit(1 if report.problems or not report.was_fenced else 0)


if __name__ == "__main__":
    main()
