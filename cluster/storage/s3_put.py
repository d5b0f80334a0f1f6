"""A put through `obstore` that is aborted at the endpoint when it is cancelled.

`obstore` aborts a multipart upload when its source raises. When the call is cancelled it only lets
go, and the parts that were sent stay at the endpoint, unseen and paid for. So a cancellation here
becomes an error of the source.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import obstore
from obstore.store import S3Store

PART_BYTES = 8 * 2**20  # of a multipart upload; several are under way at once
NUM_PARTS_AT_ONCE = 4


class _CancelledError(Exception):
    """What the source raises."""


async def put_or_abort(
    bucket: S3Store, key: str, content: bytes | AsyncIterable[bytes], content_type: str | None
) -> None:
    """Put an object, whole or not at all, also when cancelled. Raises obstore's errors."""
    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    is_small = isinstance(content, bytes) and len(content) <= PART_BYTES
    putting = asyncio.ensure_future(
        obstore.put_async(
            bucket,
            key,
            content if is_small else _until(cancelled, _pieces(content)),
            attributes={"Content-Type": content_type} if content_type else None,
            chunk_size=PART_BYTES,
            max_concurrency=NUM_PARTS_AT_ONCE,
        )
    )
    try:
        await asyncio.shield(putting)
    except asyncio.CancelledError:
        cancelled.set_result(None)
        await asyncio.gather(putting, return_exceptions=True)
        raise


async def _pieces(content: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        for start in range(0, len(content), PART_BYTES):
            yield content[start : start + PART_BYTES]
        return
    async for data in content:
        yield data


async def _until(
    cancelled: asyncio.Future[None], source: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """The source's items; raises as soon as `cancelled` is done."""
    while True:
        step = asyncio.ensure_future(_next_of(source))
        either: set[asyncio.Future[Any]] = {step, cancelled}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if cancelled.done():
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
            raise _CancelledError
        data = step.result()
        if data is None:
            return
        yield data


async def _next_of(source: AsyncIterator[bytes]) -> bytes | None:
    return await anext(source, None)
