"""Computes searches beside the event loop: all that wait at a moment, in one go.

While one batch is computed the next one gathers, so under load many searches share each product,
and alone a search waits for nobody.
"""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from models.retrieval.search import Candidate, Search, run_searches

_MAX_BATCH = 64


class SearchThread:
    """One thread; belongs to the event loop that uses it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="searching")
        self._waiting: deque[tuple[Search, asyncio.Future[list[Candidate]]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def run(self, search: Search) -> list[Candidate]:
        """See `run_searches`. A search whose caller has gone is not computed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Candidate]] = loop.create_future()
        self._waiting.append((search, future))
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work_off(), name="searches")
        return await future

    async def stop(self) -> None:
        """Compute what waits, then end the thread."""
        if self._working is not None:
            await self._working
        await asyncio.to_thread(self._executor.shutdown)

    async def _work_off(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            try:
                results = await loop.run_in_executor(
                    self._executor, run_searches, [search for search, _ in batch]
                )
            except Exception as error:  # a defect: whoever waits has to hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), found in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(found)

    def _next_batch(self) -> list[tuple[Search, asyncio.Future[list[Candidate]]]]:
        batch: list[tuple[Search, asyncio.Future[list[Candidate]]]] = []
        while self._waiting and len(batch) < _MAX_BATCH:
            search, future = self._waiting.popleft()
            if not future.done():
                batch.append((search, future))
        return batch
