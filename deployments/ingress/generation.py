"""The running requests of one HTTP call: deltas from the pool in, pieces of text out, usage kept.

A call with several prompts is several requests whose deltas are merged as they come.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from cluster.errors import ServiceUnavailableError, ValidationError
from cluster.openai_schema.usage import Usage
from cluster.telemetry import ModelMetrics
from cluster.tenants.usage import UsageCounts
from cluster.types import GRAMMAR_FIELD, Request, TokenDelta, TokenLogprobs
from deployments.ingress.choice import Choice, Piece, TextRules
from deployments.ingress.deadline import until
from deployments.ingress.exchange import Exchange
from deployments.ingress.metering import reserved_tokens
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
        exchange: Exchange,
        grammar_loc: tuple[str, ...] | None = None,
        num_returned: int | None = None,
    ) -> None:
        """
        Args:
            exchange: when the HTTP request came, and by when it is to be answered.
            grammar_loc: the field of the HTTP request that the requests' grammar comes from.
            num_returned: how many choices of each request the client gets; None: all of them.
        """
        self._pool: ModelPool = model.pool
        self._requests = tuple(requests)
        self._positions = {request.request_id: at for at, request in enumerate(requests)}
        self._metrics = metrics
        self._exchange = exchange
        self._grammar_loc = grammar_loc
        self._num_per_request = requests[0].sampling_params.n
        self._num_returned = num_returned or self._num_per_request
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
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self.choices),
        )

    @property
    def reserved_tokens(self) -> int:
        """What to reserve of a tenant's tokens before it runs; see `metering`."""
        return sum(
            reserved_tokens(
                len(request.prompt_token_ids),
                request.sampling_params.max_tokens,
                num_choices=self._num_per_request,
            )
            for request in self._requests
        )

    def used(self) -> UsageCounts:
        """What was computed so far: a prompt counts once its first tokens are there."""
        begun = [cached is not None for cached in self._num_cached_tokens]
        return UsageCounts(
            num_requests=1,
            prompt_tokens=sum(
                len(request.prompt_token_ids)
                for request, has_begun in zip(self._requests, begun, strict=True)
                if has_begun
            ),
            cached_tokens=sum(cached or 0 for cached in self._num_cached_tokens),
            completion_tokens=sum(choice.num_tokens for choice in self.choices),
        )

    @property
    def returns_the_best_only(self) -> bool:
        """Whether the client gets fewer choices than are generated; see `best`."""
        return self._num_returned < self._num_per_request

    def best(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Of the pieces of a finished generation those that are returned, by rank.

        The best choices of a prompt are those with the highest sums of logprobs; choice r of
        prompt p becomes p · num_returned + r.
        """
        assert self.is_finished, "choices are ranked when all are known"
        renumbered: dict[int, int] = {}
        for first in range(0, len(self.choices), self._num_per_request):
            ranked = sorted(
                self.choices[first : first + self._num_per_request],
                key=lambda choice: -choice.cumulative_logprob,
            )
            for choice in ranked[: self._num_returned]:
                renumbered[choice.index] = len(renumbered)
        return [
            piece._replace(choice_index=renumbered[piece.choice_index])
            for piece in pieces
            if piece.choice_index in renumbered
        ]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """One piece per delta until every choice has ended. Closing it aborts what still runs.

        Raises:
            ServingError: from the pool, or because the stream ended too early.
        """
        try:
            async with aclosing(_deltas(self._pool, self._requests)) as deltas:
                async for delta in until(self._exchange.deadline, deltas):
                    position = self._positions[delta.request_id]
                    choice = self.choices[position * self._num_per_request + delta.index]
                    if choice.finish_reason is not None:
                        continue  # of its last tokens, one was under way when it was ended here
                    self._observe(position, delta, choice)
                    piece = choice.push(delta)
                    self._metrics.generation_tokens += len(delta.token_ids)
                    if piece.finish_reason is not None:
                        self._num_unfinished -= 1
                        if delta.finish_reason is None:
                            self._pool.end_sequence(delta.request_id, delta.index)
                    yield piece
                    if self._num_unfinished == 0:
                        return
        except ValidationError as error:
            raise self._named_after_field(error) from error
        finally:
            elapsed_s = time.perf_counter() - self._exchange.started_s
            self._metrics.e2e_request_latency.observe(elapsed_s)
        raise ServiceUnavailableError("The model's answer ended before its end.")

    def _named_after_field(self, error: ValidationError) -> ValidationError:
        """Replicas refuse `GRAMMAR_FIELD`; the client sent it under another name."""
        loc = self._grammar_loc
        if loc is None:
            return error
        return ValidationError(
            [
                replace(problem, loc=loc) if problem.loc == (GRAMMAR_FIELD,) else problem
                for problem in error.problems
            ]
        )

    def _observe(self, position: int, delta: TokenDelta, choice: Choice) -> None:
        now_s = time.perf_counter()
        if self._num_cached_tokens[position] is None:
            self._num_cached_tokens[position] = delta.num_cached_tokens
            self._metrics.prompt_tokens += len(self._requests[position].prompt_token_ids)
            self._metrics.time_to_first_token.observe(now_s - self._exchange.started_s)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs[position] = delta.prompt_logprobs
        num_tokens = len(delta.token_ids)
        if choice.last_token_s is not None and num_tokens:
            between_s = (now_s - choice.last_token_s) / num_tokens
            self._metrics.inter_token_latency.observe(between_s, times=num_tokens)
        choice.last_token_s = now_s


def _deltas(pool: ModelPool, requests: Sequence[Request]) -> AsyncGenerator[TokenDelta, None]:
    """The deltas of all requests, as they come."""
    return pool.generate(requests[0]) if len(requests) == 1 else _merged_deltas(pool, requests)


async def _merged_deltas(
    pool: ModelPool, requests: Sequence[Request]
) -> AsyncGenerator[TokenDelta, None]:
    # Bounded, so that a slow client is felt by every stream.
    queue: asyncio.Queue[TokenDelta | Exception | None] = asyncio.Queue(len(requests))

    async def pump(request: Request) -> None:
        try:
            async with aclosing(pool.generate(request)) as deltas:
                async for delta in deltas:
                    await queue.put(delta)
        except Exception as error:  # the top of a task: whoever waits is told
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(request)) for request in requests]
    num_running = len(tasks)
    try:
        while num_running:
            item = await queue.get()
            if item is None:
                num_running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
