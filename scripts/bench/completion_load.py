"""Streams of `/v1/completions`, from any server that takes token ids as prompts.

Clients send their next request when the last one is answered. Every answer must have the number of
tokens that was asked for, by the server's own count.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

from cluster.types import Request
from deployments.work_group import do_each
from scripts.bench.engine_load import gaps
from scripts.bench.report import median, quantile

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_read=600)


@dataclass(slots=True)
class StreamTimes:
    """What the clients saw, in seconds."""

    num_tokens: int = 0
    elapsed_s: float = 0.0
    first_s: list[float] = field(default_factory=list)  # from a request to its first event
    events_s: dict[str, list[float]] = field(default_factory=dict)  # by request id

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s

    @property
    def first_token_ms(self) -> float:
        return 1000 * median(self.first_s)

    @property
    def gap_ms(self) -> float:
        """p99 of the times between two events of one stream; an event may bring several tokens."""
        return 1000 * quantile(gaps(self.events_s), 0.99)


async def run_clients(
    url: str,
    model: str,
    headers: Mapping[str, str],
    requests: Sequence[Request],
    num_clients: int,
) -> StreamTimes:
    """
    Raises:
        RuntimeError: a request failed, or its answer is of another length.
    """
    times = StreamTimes()
    # A connection for each request: llama.cpp's server closes those of streams.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        url, headers=headers, timeout=_TIMEOUT, connector=connector
    ) as session:
        start_s = time.perf_counter()
        await do_each(
            requests,
            lambda request: _complete(session, model, request, times),
            num_at_once=num_clients,
        )
        times.elapsed_s = time.perf_counter() - start_s
    return times


async def _complete(
    session: aiohttp.ClientSession, model: str, request: Request, times: StreamTimes
) -> None:
    num_tokens = request.sampling_params.max_tokens
    body = {
        "model": model,
        "prompt": request.prompt_token_ids,
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start_s = time.perf_counter()
    events_s: list[float] = []
    usage: dict[str, int] = {}
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {(await response.text())[:500]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"an error in the stream: {event['error']}")
            if event.get("choices"):
                events_s.append(time.perf_counter())
            usage = event.get("usage") or usage
    if usage.get("completion_tokens") != num_tokens:
        raise RuntimeError(f"an answer of {num_tokens} tokens was asked for; it says {usage}")
    times.num_tokens += usage["completion_tokens"]
    times.first_s.append(events_s[0] - start_s)
    times.events_s[request.request_id] = events_s
