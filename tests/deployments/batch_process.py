"""Processes to be killed and measured.

    python -m tests.deployments.batch_process work REDIS_URL HOME CHECKPOINT ANSWER_S
    python -m tests.deployments.batch_process serve REDIS_URL HOME

`work` is a batch worker whose model takes `ANSWER_S` for an answer, and counts what it has
answered in the key `answered`. `serve` is an ingress with files and batches; it prints its port.
"""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from cluster.batch_config import BatchConfig
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import connect
from tests.deployments.batch_rig import (
    EchoPool,
    configuration,
    echo_calls,
    serving_batches,
    working,
)
from tests.redis_server import patient_config

ANSWERED_KEY = "answered"


async def work(url: str, home: Path, checkpoint: Path, answer_s: float) -> None:
    config, pool = configuration(url), EchoPool()
    calls = echo_calls(config, checkpoint, pool)
    async with connect(patient_config(url)) as redis:

        async def answer(text: str) -> None:
            await asyncio.sleep(answer_s)
            try:
                await redis.execute("INCR", ANSWERED_KEY)
            except ServiceUnavailableError:
                logging.warning("an answer was not counted")

        pool.trouble = answer
        batches = BatchConfig(max_lines_at_once=16)
        async with working(config, batches, home, calls, name=f"process {os.getpid()}"):
            print("ready", flush=True)
            await _terminated()


async def serve(url: str, home: Path) -> None:
    async with serving_batches(url, home) as server:
        print(server.port, flush=True)
        await _terminated()


async def _terminated() -> None:
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await terminated.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2], Path(sys.argv[3])))
    else:
        asyncio.run(work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), float(sys.argv[5])))
