"""Sending an answer: streamed as server-sent events, or whole; and noticing that nobody listens.

The first delta is awaited before a response starts, so that errors until then keep their status.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing

from starlette.types import Receive, Send

from cluster.errors import ServingError
from deployments.ingress.answer import Answer
from deployments.ingress.choice import Piece
from deployments.ingress.errors import ClientLeftError, as_serving_error, send_json
from deployments.ingress.exchange import Exchange
from deployments.ingress.generation import Generation

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]


async def unless_client_leaves(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Run `work`; cancel it as soon as the client is gone.

    Raises:
        ClientLeftError: it is gone.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
            return
        raise ClientLeftError
    finally:
        watcher.cancel()
        worker.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def send_whole(
    generation: Generation, answer: Answer, send: Send, exchange: Exchange
) -> None:
    async with aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            answer.add(piece)
            exchange.note_finish(piece.finish_reason)
    await send_json(send, answer.whole(generation.usage), headers=exchange.headers)


async def send_stream(
    generation: Generation, answer: Answer, send: Send, exchange: Exchange
) -> None:
    async with aclosing(_events(generation, answer, exchange)) as events:
        first = await anext(events)
        headers = [*_STREAM_HEADERS, *exchange.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for data in events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(
    generation: Generation, answer: Answer, exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes, an item per write. Errors after the first item become an event."""
    async with aclosing(generation.pieces()) as pieces:
        first = await anext(pieces)
        yield answer.opening() + _written(first, generation, answer, exchange)
        try:
            async for piece in pieces:
                data = _written(piece, generation, answer, exchange)
                if data:
                    yield data
        except Exception as error:
            problem: ServingError = as_serving_error(error)
            exchange.note_failure(problem)
            yield answer.failure(problem)


def _written(piece: Piece, generation: Generation, answer: Answer, exchange: Exchange) -> bytes:
    data = answer.chunk(piece)
    if piece.finish_reason is not None:
        exchange.note_finish(piece.finish_reason)
        if generation.is_finished:
            data += answer.closing(generation.usage)
    return data


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
