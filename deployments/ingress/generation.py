"""The running requests of one HTTP call: deltas from the pool in, pieces of text out, usage kept.

A call with several prompts is several requests whose deltas are merged as they come.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from cluster.errors import ServiceUnavailableError
from cluster.openai_schema.usage import Usage
from cluster.telemetry import ModelMetrics
from cluster.types import Request, TokenDelta, TokenLogprobs
from deployments.ingress.choice import Choice, Piece, TextRules
from deployments.ingress.model_pool import ModelPool
from deployments.ingress.served_model import ServedModel


class Generation:
    """Choice i of prompt p has the index p · n + i."""

    def __init__(
        self,
        model: ServedModel,
        requests: Sequence[Request],
        rules: TextRules,
        *,
        metrics: ModelMetrics,
        started_s: float,
    ) -> None:
        """`started_s`: when the HTTP request came, by `time.perf_counter`."""
        self._pool: ModelPool = model.pool
        self._requests = tuple(requests)
        self._metrics = metrics
        self._started_s = started_s
        self._num_per_request = requests[0].sampling_params.n
        self.choices = tuple(
            Choice(index, model.tokenizer, rules)
            for index in range(len(requests) * self._num_per_request)
        )
        #: By request: of each prompt token but the first, once the first delta is there.
        self.prompt_logprobs: list[list[TokenLogprobs] | None] = [None] * len(requests)
        self._num_cached_tokens: list[int | None] = [None] * len(requests)
        self._num_unfinished = len(self.choices)

    @property
    def is_finished(self) -> bool:
        return self._num_unfinished == 0

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage.of(
            prompt_tokens=sum(len(request.prompt_token_ids) for request in self._requests),
            completion_tokens=sum(choice.num_tokens for choice in self.choices),
            cached_tokens=sum(cached or 0 for cached in self._num_cached_tokens),
        )

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """One piece per delta until every choice has ended. Closing it aborts what still runs.

        Raises:
            ServingError: from the pool, or because the stream ended too early.
        """
        try:
            async with aclosing(_deltas(self._pool, self._requests)) as deltas:
                async for position, delta in deltas:
                    choice = self.choices[position * self._num_per_request + delta.index]
                    if choice.finish_reason is not None:
                        continue  # ended by a stop string, which the engine does not know
                    self._observe(position, delta, choice)
                    piece = choice.push(delta)
                    self._metrics.generation_tokens += len(delta.token_ids)
                    if piece.finish_reason is not None:
                        self._num_unfinished -= 1
                    yield piece
                    if self._num_unfinished == 0:
                        return
        finally:
            elapsed_s = time.perf_counter() - self._started_s
            self._metrics.e2e_request_latency.observe(elapsed_s)
        raise ServiceUnavailableError("The model's answer ended before its end.")

    def _observe(self, position: int, delta: TokenDelta, choice: Choice) -> None:
        now_s = time.perf_counter()
        if self._num_cached_tokens[position] is None:
            self._num_cached_tokens[position] = delta.num_cached_tokens
            self._metrics.prompt_tokens += len(self._requests[position].prompt_token_ids)
            self._metrics.time_to_first_token.observe(now_s - self._started_s)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs[position] = delta.prompt_logprobs
        num_tokens = len(delta.token_ids)
        if choice.last_token_s is not None and num_tokens:
            between_s = (now_s - choice.last_token_s) / num_tokens
            self._metrics.inter_token_latency.observe(between_s, times=num_tokens)
        choice.last_token_s = now_s


async def _deltas(
    pool: ModelPool, requests: Sequence[Request]
) -> AsyncGenerator[tuple[int, TokenDelta], None]:
    """Deltas with the position of their request."""
    if len(requests) > 1:
        async with aclosing(_merged_deltas(pool, requests)) as merged:
            async for item in merged:
                yield item
        return
    async with aclosing(pool.generate(requests[0])) as deltas:
        async for delta in deltas:
            yield 0, delta


async def _merged_deltas(
    pool: ModelPool, requests: Sequence[Request]
) -> AsyncGenerator[tuple[int, TokenDelta], None]:
    # Bounded, so that a slow client is felt by every stream.
    queue: asyncio.Queue[tuple[int, TokenDelta | Exception | None]] = asyncio.Queue(len(requests))

    async def pump(position: int, request: Request) -> None:
        try:
            async with aclosing(pool.generate(request)) as deltas:
                async for delta in deltas:
                    await queue.put((position, delta))
        except Exception as error:  # the top of a task: whoever waits is told
            await queue.put((position, error))
        else:
            await queue.put((position, None))

    tasks = [asyncio.create_task(pump(*item)) for item in enumerate(requests)]
    num_running = len(tasks)
    try:
        while num_running:
            position, item = await queue.get()
            if item is None:
                num_running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield position, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
