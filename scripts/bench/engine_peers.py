"""Other engines, run by turns with ours on the same prompts: those that this machine has.

Each gets the same token ids and the same numbers of output tokens, and is checked to have given
them. Peers in processes of their own are stopped (SIGSTOP) while it is not their turn. Nothing is
installed here: a peer that is missing is said to be.
"""

import dataclasses
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from cluster.types import Request, SamplingParams
from scripts.bench.peer_process import (
    START_TIMEOUT_S,
    PeerProcess,
    await_health,
    free_port,
    llama_command,
    vllm_environment,
)

RUN_TIMEOUT_S = 600.0
VLLM_CHILD = Path(__file__).with_name("peer_vllm.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What a peer has to hold."""

    folder: Path  # with a config.json; weights are made up
    dtype: str
    device: torch.device
    max_model_len: int
    max_concurrency: int
    max_tokens: int  # of all requests of a load together
    vllm_python: str | None  # an interpreter that has vLLM; None: this one
    gguf: Path | None  # llama.cpp's form of the same shape


class Peer(Protocol):
    """One other engine, loaded."""

    title: str

    def can_run(self, requests: list[Request]) -> bool:
        """Whether it can choose tokens as they ask."""
        ...

    def run(self, requests: list[Request]) -> float:
        """Seconds until all requests, which come at once, have all their tokens."""
        ...

    def close(self) -> None: ...


# transformers renamed it between 5.17 and 5.23.
_BLOCK_SIZE_NAME = next(
    field.name
    for field in dataclasses.fields(ContinuousBatchingConfig)
    if field.name in ("page_size", "block_size")
)


class TransformersPeer:
    """`generate_batch`: continuous batching in this process, greedy alone."""

    title = "transformers generate_batch"

    def __init__(self, options: PeerOptions) -> None:
        config = AutoConfig.from_pretrained(options.folder)
        with options.device:
            self._model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
            ).eval()
        # A sequence's last block is not full.
        self._num_blocks = max(1024, -(-options.max_tokens // 32) + options.max_concurrency)

    def can_run(self, requests: list[Request]) -> bool:
        return all(request.sampling_params.temperature == 0 for request in requests)

    def run(self, requests: list[Request]) -> float:
        num_tokens = requests[0].sampling_params.max_tokens
        generation = GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        block_size = {_BLOCK_SIZE_NAME: 32}
        batching = ContinuousBatchingConfig(
            **block_size, num_blocks=self._num_blocks, max_batch_tokens=1024
        )
        prompts = [request.prompt_token_ids for request in requests]
        start_s = time.perf_counter()
        outputs = self._model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching
        )
        elapsed_s = time.perf_counter() - start_s
        lengths = [len(output.generated_tokens) for output in outputs.values()]
        assert lengths == [num_tokens] * len(requests), lengths
        return elapsed_s

    def close(self) -> None:
        del self._model


class VLLMPeer:
    """vLLM's offline engine with prefix caching, in a child process."""

    title = "vLLM"

    def __init__(self, options: PeerOptions) -> None:
        arguments = {
            "model": str(options.folder),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": options.dtype,
            "max_model_len": options.max_model_len,
            "max_num_seqs": max(64, options.max_concurrency),
            "enable_prefix_caching": True,
        }
        python = options.vllm_python or sys.executable
        self._child = PeerProcess(
            [python, str(VLLM_CHILD)],
            vllm_environment(python, torch.get_num_threads()),
            is_asked=True,
        )
        self._ask(arguments, START_TIMEOUT_S)
        self._child.pause()

    def can_run(self, requests: list[Request]) -> bool:
        return True

    def run(self, requests: list[Request]) -> float:
        with self._child.awake():
            answer = self._ask(
                {
                    "prompts": [request.prompt_token_ids for request in requests],
                    "params": [vllm_params(request.sampling_params) for request in requests],
                },
                RUN_TIMEOUT_S,
            )
        wanted = sum(request.sampling_params.max_tokens or 0 for request in requests)
        assert answer["num_tokens"] == wanted, answer
        return float(answer["elapsed_s"])

    def close(self) -> None:
        self._child.end()

    def _ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self._child.ask, json.dumps(question))
            try:
                line = answer.result(timeout_s)
            except TimeoutError:
                said = self._child.last_words()
                self._child.end()
                raise RuntimeError(f"vLLM did not answer in {timeout_s:.0f} s: {said}") from None
            except BaseException:
                self._child.end()  # which ends the thread's reading too
                raise
        if not line:
            said = self._child.last_words()
            self._child.end()
            raise RuntimeError(f"vLLM's process ended: {said}")
        found: dict[str, Any] = json.loads(line)
        return found


class LlamaServerPeer:
    """llama.cpp's server, by its completion endpoint; its slots are the highest concurrency."""

    title = "llama.cpp server"

    def __init__(self, options: PeerOptions) -> None:
        assert options.gguf is not None, "`missing` was asked"
        slots, port = options.max_concurrency, free_port()
        command = llama_command(
            options.gguf,
            port=port,
            num_threads=torch.get_num_threads(),
            num_slots=slots,
            max_model_len=options.max_model_len,
        )
        if options.device.type == "cuda":
            command += ["-ngl", "999"]
        self._child = PeerProcess(command, {}, is_asked=False)
        self._pool = ThreadPoolExecutor(slots)
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=RUN_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        try:
            await_health(str(self._client.base_url), self._child, self.title)
        except BaseException:
            self.close()
            raise
        self._child.pause()

    def can_run(self, requests: list[Request]) -> bool:
        """Its samplers differ in order and in kind from ours: greedy alone is the same work."""
        return all(request.sampling_params.temperature == 0 for request in requests)

    def run(self, requests: list[Request]) -> float:
        with self._child.awake():
            start_s = time.perf_counter()
            counts = list(self._pool.map(self._complete, requests))
            elapsed_s = time.perf_counter() - start_s
        assert counts == [request.sampling_params.max_tokens for request in requests], counts
        return elapsed_s

    def close(self) -> None:
        self._client.close()
        self._child.end()
        self._pool.shutdown()

    def _complete(self, request: Request) -> int:
        body = {
            "prompt": request.prompt_token_ids,
            "n_predict": request.sampling_params.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": True,
        }
        response = self._client.post("/completion", json=body).raise_for_status()
        return int(response.json()["tokens_predicted"])


def vllm_params(params: SamplingParams) -> dict[str, Any]:
    """The same choice in vLLM's words."""
    return {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "logit_bias": params.logit_bias,
        "logprobs": params.logprobs,
        "seed": params.seed,
        "ignore_eos": True,
        "detokenize": False,
    }


PEERS: dict[str, Callable[[PeerOptions], Peer]] = {
    "transformers": TransformersPeer,
    "vllm": VLLMPeer,
    "llama.cpp": LlamaServerPeer,
}


def missing(name: str, *, vllm_python: str | None, gguf: Path | None) -> str | None:
    """Why this peer cannot take part; None: it can."""
    if name == "vllm" and vllm_python is None and importlib.util.find_spec("vllm") is None:
        return "vLLM: not installed here (--vllm-python names an interpreter that has it)"
    if name == "llama.cpp":
        if shutil.which("llama-server") is None:
            return "llama.cpp: not installed (no llama-server on PATH)"
        if gguf is None:
            return "llama.cpp: llama-server is there, but --gguf names no model for it"
    return None
