"""Searches that wait are computed together, beside the event loop."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from deployments import search_thread
from deployments.search_thread import SearchThread
from models.retrieval.search import Candidate, Search, run_searches
from tests.models.retrieval.bucket_samples import index_of, places, search_of, segment


class Gate:
    """`run_searches` that waits until a test lets it pass, and remembers its batches."""

    def __init__(self, *errors: Exception) -> None:
        self.batches: list[int] = []
        self._errors = list(errors)
        self._permits = threading.Semaphore(0)
        self._started = threading.Semaphore(0)

    def __call__(self, searches: Sequence[Search]) -> list[list[Candidate]]:
        self.batches.append(len(searches))
        self._started.release()
        self._permits.acquire()
        if self._errors:
            raise self._errors.pop(0)
        return run_searches(searches)

    def let_pass(self, count: int) -> None:
        self._permits.release(count)

    async def has_started(self) -> None:
        await asyncio.to_thread(self._started.acquire)


def gated(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> Gate:
    gate = Gate(*errors)
    monkeypatch.setattr(search_thread, "run_searches", gate)
    return gate


VIEW = index_of(segment("a", [f"word{n}" for n in range(20)])).view


def search(number: int) -> Search:
    return search_of(VIEW, queries=[f"word{number}"], count=1)


async def test_what_comes_while_a_batch_is_computed_is_the_next_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, thread = gated(monkeypatch), SearchThread()
    first = asyncio.create_task(thread.run(search(0)))
    await gate.has_started()
    others = [asyncio.create_task(thread.run(search(number))) for number in range(1, 11)]
    await asyncio.sleep(0)  # they stand in the queue
    gate.let_pass(2)
    found = [places(await task)[0][2] for task in (first, *others)]
    assert found == list(range(11))
    assert gate.batches == [1, 10]
    await thread.stop()


async def test_a_search_whose_caller_has_gone_is_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, thread = gated(monkeypatch), SearchThread()
    first = asyncio.create_task(thread.run(search(0)))
    await gate.has_started()
    gone, stays = (asyncio.create_task(thread.run(search(number))) for number in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    gate.let_pass(2)
    await asyncio.gather(first, stays)
    assert gate.batches == [1, 1]
    await thread.stop()


async def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, thread = gated(monkeypatch), SearchThread()
    gate.let_pass(100)
    await asyncio.gather(*(thread.run(search(number % 20)) for number in range(200)))
    assert max(gate.batches) <= 64
    assert sum(gate.batches) == 200
    await thread.stop()


async def test_a_defect_reaches_all_of_its_batch_and_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, thread = gated(monkeypatch, KeyError("defect")), SearchThread()
    gate.let_pass(2)
    errors = await asyncio.gather(
        *(thread.run(search(number)) for number in range(3)), return_exceptions=True
    )
    assert [type(error) for error in errors] == [KeyError] * 3
    assert places(await thread.run(search(5)))[0][2] == 5
    await thread.stop()
