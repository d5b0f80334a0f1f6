"""Requests to a running API, each read to its end and checked: did it end whole?

Whole means: status 200, a finish reason, the usage with as many tokens as were asked for, and of a
stream also its `[DONE]`. `MixedLoad` asks without a pause, streamed and whole answers, chats and
completions by turns.
"""

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

_PROMPTS = ("Tell me about the sea.", "Count to ten.", "Who are you, and what can you do?")
_REFUSED_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one request ended."""

    model: str
    is_streamed: bool
    started_s: float  # of the monotonic clock
    ended_s: float
    first_s: float  # from the request to its first event, or to the whole answer
    longest_pause_s: float  # between two events of a stream; 0 of a whole answer
    num_tokens: int
    has_begun: bool  # the client had the status and something of the answer
    problem: str | None  # None: it ended whole


@dataclass(slots=True)
class _Reading:
    """What a stream has brought so far."""

    started_s: float
    arrivals_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    is_done: bool = False
    error: str | None = None

    def take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            self.arrivals_s.append(time.monotonic())
            if "error" in event:
                self.error = str(event["error"])
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices") or ():
                self.finish_reason = choice["finish_reason"] or self.finish_reason

    @property
    def longest_pause_s(self) -> float:
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return max((later - earlier for earlier, later in pairs), default=0.0)


async def ask(
    client: httpx.AsyncClient, model: str, *, max_tokens: int, is_streamed: bool, number: int = 0
) -> Ending:
    """One request for exactly so many tokens; never raises for what the server does.

    Args:
        client: with the API's base URL and key.
        number: which prompt, and whether it is a chat (odd numbers) or a completion.
    """
    path, body = _request(model, number, max_tokens)
    reading = _Reading(time.monotonic())
    problem: str | None
    try:
        if is_streamed:
            problem = await _read_stream(client, path, body, reading)
        else:
            problem = await _read_whole(client, path, body, reading)
    except httpx.HTTPError as error:
        problem = repr(error)
    tokens = (reading.usage or {}).get("completion_tokens", 0)
    if problem is None and reading.finish_reason is None:
        problem = "no finish reason"
    if problem is None and tokens != max_tokens:
        problem = f"{tokens} tokens of {max_tokens}: {reading.usage}"
    ended_s = time.monotonic()
    first_s = reading.arrivals_s[0] if reading.arrivals_s else ended_s
    return Ending(
        model=model,
        is_streamed=is_streamed,
        started_s=reading.started_s,
        ended_s=ended_s,
        first_s=first_s - reading.started_s,
        longest_pause_s=reading.longest_pause_s,
        num_tokens=tokens,
        has_begun=bool(reading.arrivals_s),
        problem=problem,
    )


def _request(model: str, number: int, max_tokens: int) -> tuple[str, dict[str, Any]]:
    prompt = f"{_PROMPTS[number % len(_PROMPTS)]} ({number})"
    common = {"model": model, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.7}
    if number % 2:
        messages = [{"role": "user", "content": prompt}]
        return "/v1/chat/completions", {**common, "messages": messages}
    return "/v1/completions", {**common, "prompt": prompt}


async def _read_stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], reading: _Reading
) -> str | None:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", path, json=body) as response:
        if response.status_code != httpx.codes.OK:
            text = (await response.aread()).decode(errors="replace")
            return f"status {response.status_code}: {text[:200]}"
        async for line in response.aiter_lines():
            reading.take(line)
    if reading.error is not None:
        return reading.error
    return None if reading.is_done else "the stream ends without [DONE]"


async def _read_whole(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], reading: _Reading
) -> str | None:
    response = await client.post(path, json=body)
    if response.status_code != httpx.codes.OK:
        return f"status {response.status_code}: {response.text[:200]}"
    answer = response.json()
    reading.arrivals_s.append(time.monotonic())
    reading.finish_reason = answer["choices"][0]["finish_reason"]
    reading.usage = answer["usage"]
    return None


class MixedLoad:
    """Clients that ask for models without a pause, each one request after the other."""

    def __init__(self, client: httpx.AsyncClient, *, max_tokens: int) -> None:
        """`max_tokens`: of a long answer; every second one has a third of them."""
        self._client = client
        self._max_tokens = max_tokens
        self._clients: dict[str, list[asyncio.Task[None]]] = {}
        self._leaving: set[str] = set()
        self._ended = asyncio.Condition()
        self.endings: list[Ending] = []

    def start(self, models: Iterable[str], *, clients_each: int) -> None:
        """So many clients for each of these models, from now on."""
        for model in models:
            self._leaving.discard(model)
            self._clients[model] = [
                asyncio.create_task(self._keep_asking(model, number), name=f"client of {model}")
                for number in range(clients_each)
            ]

    async def stop(self, *models: str) -> None:
        """Ask no more for these (none given: for any), and wait for what is under way."""
        names = models or tuple(self._clients)
        self._leaving |= set(names)
        await asyncio.gather(*(task for name in names for task in self._clients.pop(name)))

    async def until_each_has_ended(self, number: int) -> None:
        """Wait until so many more requests have ended for each model that is asked for now."""
        goals = {model: self._num_ended(model) + number for model in self._clients}
        async with self._ended:
            await self._ended.wait_for(
                lambda: all(self._num_ended(model) >= goal for model, goal in goals.items())
            )

    def _num_ended(self, model: str) -> int:
        return sum(ending.model == model for ending in self.endings)

    async def _keep_asking(self, model: str, number: int) -> None:
        while model not in self._leaving:
            ending = await ask(
                self._client,
                model,
                max_tokens=self._max_tokens if number % 2 else self._max_tokens // 3,
                is_streamed=number % 4 < 2,
                number=number,
            )
            number += 1
            async with self._ended:
                self.endings.append(ending)
                self._ended.notify_all()
            if ending.problem is not None:
                await asyncio.sleep(_REFUSED_PAUSE_S)
