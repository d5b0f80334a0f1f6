"""Every stream is counted whole, in the server's words, and what is wrong with one is raised."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.types import Request
from scripts.bench.completion_load import run_clients
from scripts.bench.engine_workloads import WORKLOADS

CLIENTS = 3


class Server(ThreadingHTTPServer):
    """Answers when as many requests are there as there are clients: each tells of the last one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.all_are_here = threading.Barrier(CLIENTS, timeout=120)
        self.lack = 0
        self.event: dict[str, Any] = {"choices": [{"text": "a"}]}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["ignore_eos"]
        assert self.path == "/v1/completions"
        if self.headers["Authorization"] != "Bearer key":
            self.send_error(401)
            return
        self.server.all_are_here.wait()
        self.send_response(200)
        self.end_headers()
        count = body["max_tokens"] - self.server.lack
        for event in [self.server.event] * count:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        usage = {"choices": [], "usage": {"completion_tokens": count}}
        self.wfile.write(f": a comment\n\ndata: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def requests() -> list[Request]:
    return WORKLOADS["short"].shortened().requests(2 * CLIENTS, vocab_size=100, seed=0)


HEADERS = {"Authorization": "Bearer key"}


async def test_clients_ask_together_and_again_when_they_are_answered(
    server: Server, requests: list[Request]
) -> None:
    times = await run_clients(server.url, "m", HEADERS, requests, CLIENTS)
    assert times.num_tokens == 8 * 2 * CLIENTS
    assert times.tokens_per_s > 0
    assert len(times.first_s) == 2 * CLIENTS
    assert sorted(times.events_s) == [str(number) for number in range(2 * CLIENTS)]
    assert all(len(events) == 8 for events in times.events_s.values())
    assert times.first_token_ms >= 0
    assert times.gap_ms >= 0


async def test_an_answer_of_another_length_is_not_counted(
    server: Server, requests: list[Request]
) -> None:
    server.lack = 1
    with pytest.raises(RuntimeError, match=r"8 tokens was asked for; it says .*7"):
        await run_clients(server.url, "m", HEADERS, requests, CLIENTS)


async def test_an_error_in_a_stream_is_raised(server: Server, requests: list[Request]) -> None:
    server.event = {"error": {"message": "out of blocks"}}
    with pytest.raises(RuntimeError, match="out of blocks"):
        await run_clients(server.url, "m", HEADERS, requests, CLIENTS)


async def test_a_refusal_is_raised(server: Server, requests: list[Request]) -> None:
    with pytest.raises(RuntimeError, match="401"):
        await run_clients(server.url, "m", {}, requests, CLIENTS)
