"""Sending an answer: streamed as server-sent events, or whole; and noticing that nobody listens.

The first delta is awaited before a response starts, so that errors until then keep their status.
A stream whose first delta takes long (a queue, a beam search) starts without it, and says from time
to time that it is alive: proxies and clients close connections on which nothing moves.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing

from starlette.types import Receive, Send

from cluster.errors import ServingError
from deployments.ingress.answer import Answer
from deployments.ingress.choice import Piece
from deployments.ingress.errors import ClientLeftError, as_serving_error, send_json
from deployments.ingress.exchange import Exchange
from deployments.ingress.generation import Generation

START_AFTER_S = 10.0  # refusals, of grammars too, come sooner
KEEP_ALIVE_S = 5.0

KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which readers of event streams skip
STREAM_HEADERS = [
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
    """
    Raises:
        LimitReachedError: the tenant may not run it now.
    """
    async with _metered(generation, exchange):
        await _send_whole(generation, answer, send, exchange)


async def send_stream(
    generation: Generation, answer: Answer, send: Send, exchange: Exchange
) -> None:
    """
    Raises:
        LimitReachedError: the tenant may not run it now.
    """
    async with _metered(generation, exchange):
        await _send_stream(generation, answer, send, exchange)


def _metered(generation: Generation, exchange: Exchange) -> AbstractAsyncContextManager[None]:
    return exchange.meter.running(
        model=exchange.model, num_tokens=generation.reserved_tokens, used=generation.used
    )


async def _send_whole(
    generation: Generation, answer: Answer, send: Send, exchange: Exchange
) -> None:
    drawn: list[Piece] = []
    async with aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            exchange.note_finish(piece.finish_reason)
            if generation.returns_the_best_only:
                drawn.append(piece)
            else:
                answer.add(piece)
    for piece in generation.best(drawn) if drawn else ():
        answer.add(piece)
    await send_json(send, answer.whole(generation.usage), headers=exchange.headers)


async def _send_stream(
    generation: Generation, answer: Answer, send: Send, exchange: Exchange
) -> None:
    async with aclosing(_events(generation, answer, exchange)) as events:
        first = await anext(events)
        headers = [*STREAM_HEADERS, *exchange.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for data in events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(
    generation: Generation, answer: Answer, exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes, an item per write. Errors after the first item become an event."""
    has_started = False
    try:
        async with aclosing(_written_pieces(generation, answer, exchange)) as written:
            async for data in written:
                has_started = True
                yield data
    except Exception as error:
        if not has_started:
            raise
        problem: ServingError = as_serving_error(error)
        exchange.note_failure(problem)
        yield answer.failure(problem)


async def _written_pieces(
    generation: Generation, answer: Answer, exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    async with aclosing(generation.pieces()) as pieces:
        first = asyncio.ensure_future(anext(pieces))
        has_opened = False
        try:
            while not await _ends(first, within_s=KEEP_ALIVE_S if has_opened else START_AFTER_S):
                yield KEEP_ALIVE if has_opened else answer.opening() + KEEP_ALIVE
                has_opened = True
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        opening = b"" if has_opened else answer.opening()
        yield opening + _written(first.result(), generation, answer, exchange)
        async for piece in pieces:
            data = _written(piece, generation, answer, exchange)
            if data:
                yield data


async def _ends(future: asyncio.Future[Piece], *, within_s: float) -> bool:
    done, _ = await asyncio.wait({future}, timeout=within_s)
    return bool(done)


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
