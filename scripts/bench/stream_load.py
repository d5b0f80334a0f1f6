"""A load of concurrent completion streams over raw sockets, cheap enough to share the machine.

    python -m scripts.bench.stream_load --url http://127.0.0.1:8000 --streams 256 --tokens 200

The server runs synthetic steps: each token is the last one plus one, and steps end at multiples of
the step time on the monotonic clock. So the text received so far says which token an event brought,
and the clock says when that token was made: one beat after the one before it. Which beat a stream
began with follows from its promptest token, taken to have arrived within one beat. An engine that
falls behind its beat is counted as late delivery. Prints one JSON object.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import orjson
import uvloop
from tokenizers import Tokenizer

from cluster.model_source import DEMO_SOURCE, resolve_model_source


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Texts of the demo tokenizer's tokens, and a run of tokens that are whole characters."""

    texts: list[str]
    first: int
    count: int

    @classmethod
    def demo(cls) -> "Vocabulary":
        path = Path(resolve_model_source(DEMO_SOURCE)) / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        texts = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
        first, count, start = 0, 0, None
        for token, text in enumerate([*texts, ""]):
            is_plain = bool(text) and "\ufffd" not in text
            if is_plain and start is None:
                start = token
            elif not is_plain and start is not None:
                if token - start > count:
                    first, count = start, token - start
                start = None
        return cls(texts, first, count)


@dataclass(slots=True)
class Measurements:
    """What all streams saw."""

    latencies_ms: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_events: int = 0
    errors: list[str] = field(default_factory=list)


class Stream(asyncio.Protocol):
    """One request on one connection."""

    def __init__(
        self, request: bytes, texts: list[str], step_s: float, measurements: Measurements
    ) -> None:
        self._request = request
        self._texts = texts
        self._step_s = step_s
        self._measurements = measurements
        self._buffer = b""
        self._num_tokens = 0
        self._arrivals: list[tuple[int, float]] = []  # tokens so far, and when the last one came
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                self._event(orjson.loads(line[6:]), now_s)
            elif line.startswith(b"data: [DONE]"):
                self._finish()
            elif line.startswith(b"HTTP/1.1 ") and not line.startswith(b"HTTP/1.1 200"):
                self._measurements.errors.append(line.decode())
                self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._measurements.errors.append(f"connection lost: {exc}")
            self.done.set_result(None)

    def _event(self, event: dict[str, object], now_s: float) -> None:
        if "error" in event:
            self._measurements.errors.append(str(event["error"]))
            return
        choices = event.get("choices")
        if not choices:
            usage = event.get("usage")
            assert isinstance(usage, dict)
            self._measurements.num_tokens += usage["completion_tokens"]
            return
        assert isinstance(choices, list)
        length = len(choices[0]["text"])
        if length == 0:
            return
        while length > 0:
            length -= len(self._texts[self._num_tokens])
            self._num_tokens += 1
        self._arrivals.append((self._num_tokens, now_s))

    def _finish(self) -> None:
        if not self.done.done():
            self._measure()
            self.done.set_result(None)
        self._transport.close()

    def _measure(self) -> None:
        step_s = self._step_s
        starts_s = [arrived_s - count * step_s for count, arrived_s in self._arrivals]
        if not starts_s:
            return
        first_beat_s = int(min(starts_s) / step_s) * step_s
        self._measurements.latencies_ms += [(start - first_beat_s) * 1000 for start in starts_s]
        self._measurements.num_events += len(starts_s)


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    vocabulary = Vocabulary.demo()
    assert arguments.tokens < vocabulary.count, "the run of plain tokens is too short"
    url = urlsplit(arguments.url)
    first = vocabulary.first
    texts = vocabulary.texts[first + 1 : first + 2 + arguments.tokens]
    measurements = Measurements()
    loop = asyncio.get_running_loop()
    start_s = time.monotonic()
    streams = []
    requests = [_request(arguments, model, first) for model in arguments.model.split(",")]
    for number in range(arguments.streams):
        request = requests[number % len(requests)]
        _, stream = await loop.create_connection(
            lambda request=request: Stream(request, texts, arguments.step_ms / 1000, measurements),
            url.hostname,
            url.port,
        )
        streams.append(stream)
    await asyncio.gather(*(stream.done for stream in streams))
    elapsed_s = time.monotonic() - start_s
    latencies = sorted(measurements.latencies_ms)
    return {
        "tokens_per_s": measurements.num_tokens / elapsed_s,
        "num_tokens": measurements.num_tokens,
        "num_events": measurements.num_events,
        "delivery_ms_p50": latencies[len(latencies) // 2],
        "delivery_ms_p99": latencies[len(latencies) * 99 // 100],
        "client_cpu_s": time.process_time(),
        "errors": measurements.errors[:3],
        "num_errors": len(measurements.errors),
    }


def _request(arguments: argparse.Namespace, model: str, first: int) -> bytes:
    """A stream's request for one model; its prompt ends with the token `first`."""
    url = urlsplit(arguments.url)
    body = json.dumps(
        {
            "model": model,
            "prompt": [first] * 16,
            "max_tokens": arguments.tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
        f"Authorization: Bearer {arguments.api_key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    return head + body


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="none")
    parser.add_argument(
        "--model", default="shoal/demo-chat", help="several, by turns: separated by commas"
    )
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each stream")
    parser.add_argument("--step-ms", type=float, default=20.0)
    uvloop.install()
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
