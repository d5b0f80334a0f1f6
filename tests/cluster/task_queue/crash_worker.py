"""A worker process to be killed: `python -m tests.cluster.task_queue.crash_worker URL NAME UNIT_S`.

It saves a result for each unit of a `Count` task, one by one, and counts what it has carried out in
the key `ran`. SIGTERM ends it as a deployment would be.
"""

import asyncio
import logging
import signal
import sys

from cluster.redis_client import connect
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.running_task import RunningTask
from cluster.task_queue.task import Outcome, Progress
from cluster.task_queue.worker_loop import TaskWorkerLoop
from tests.cluster.task_queue.tasks import SUCCESS, Count
from tests.redis_server import patient_config

LEASE_S = 1.0
RAN_KEY = "ran"


async def work(url: str, name: str, unit_s: float) -> None:
    async with connect(patient_config(url)) as redis:

        async def count(body: Count, task: RunningTask) -> Outcome:
            has = await task.saved_item_ids()
            todo = [str(n) for n in range(body.num_items) if str(n) not in has]
            for done, item_id in enumerate(todo):
                await asyncio.sleep(unit_s)  # the unit's work
                await redis.execute("INCR", RAN_KEY)
                await task.save_item(item_id, f"{name} {task.lease.token}".encode())
                if done % 50 == 0:
                    progress = Progress(num_total=body.num_items, num_done=len(has) + done)
                    await task.report(progress)
            return SUCCESS

        loop = TaskWorkerLoop(TaskQueue(redis), name=name, num_slots=2, lease_s=LEASE_S)
        loop.handle(Count, count)
        running = asyncio.create_task(loop.run())
        terminated = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
        print("ready", flush=True)
        await terminated.wait()
        await loop.stop(grace_s=0.1)
        await running


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    asyncio.run(work(sys.argv[1], sys.argv[2], float(sys.argv[3])))
