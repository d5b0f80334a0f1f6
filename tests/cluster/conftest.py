"""A scripted API on a free port: answers each POST with what the test laid down."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass(slots=True, kw_only=True)
class ScriptedAPI:
    """What to answer, what was asked."""

    url: str = ""
    status: int = 200
    content: bytes = b""
    bodies: list[dict[str, object]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def answer_with(self, *events: object, done: bool = True) -> None:
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.content = "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()

    def say(self, *pieces: str, finish_reason: str = "stop") -> None:
        deltas = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]}
        usage = {"choices": [], "usage": {"completion_tokens": len(pieces)}}
        self.answer_with(*deltas, end, usage)


@pytest.fixture
def api() -> Iterator[ScriptedAPI]:
    scripted = ScriptedAPI()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            scripted.bodies.append(json.loads(self.rfile.read(size)))
            scripted.authorizations.append(self.headers["Authorization"])
            self.send_response(scripted.status)
            self.send_header("Content-Length", str(len(scripted.content)))
            self.end_headers()
            self.wfile.write(scripted.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scripted.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield scripted
    server.shutdown()
    thread.join()
    server.server_close()
