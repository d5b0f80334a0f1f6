"""Other people's servers, played by a small program: one is awake, and none is left."""

import stat
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.bench.engine_servers import LlamaServer, ServerOptions, VLLMServer

SERVER = """\
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if "{trouble}":
    sys.exit("{trouble}")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()


port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def options(folder: Path) -> ServerOptions:
    return ServerOptions(
        checkpoint=folder,
        dtype="bfloat16",
        max_model_len=64,
        max_concurrency=2,
        vllm_python=sys.executable,
        gguf=folder / "model.gguf",
        port=1,
    )


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str = "") -> None:
    """As llama.cpp's program, and as the package vllm."""
    program = folder / "llama-server"
    program.write_text(f"#!{sys.executable}\n{SERVER.format(trouble=trouble)}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER.format(trouble=trouble))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize("kind", [LlamaServer, VLLMServer])
def test_a_server_answers_in_its_turn_and_rests_otherwise(
    kind: type[LlamaServer] | type[VLLMServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    server = kind(options(tmp_path))
    process = psutil.Process(server._process._process.pid)
    try:
        assert process.status() == psutil.STATUS_STOPPED
        with server.awake():
            assert httpx.get(f"{server.url}/health", trust_env=False, timeout=120).is_success
        assert process.status() == psutil.STATUS_STOPPED
    finally:
        server.close()
    assert not process.is_running()


def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, trouble="no such model")
    with pytest.raises(RuntimeError, match="ended: no such model"):
        VLLMServer(options(tmp_path))
