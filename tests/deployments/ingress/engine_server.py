"""The real ingress over the real engine in one process: tiny random weights, no Ray."""

import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import tokenizers
import torch
import transformers
from openai import AsyncOpenAI

from cluster.telemetry import ReplicaLoad, Telemetry
from cluster.types import Request, TokenDelta
from deployments.ingress.app import build_asgi_app
from deployments.ingress.served_model import load_served_model
from deployments.ingress.services import TenantServices
from models.engine.async_engine import AsyncEngine
from models.engine.build import build_engine
from models.tokenizer import Tokenizer
from tests.deployments.ingress.scripted_server import KEY, configuration, listening

CONTEXT = 512
NUM_END_TOKENS = 12  # so that sequences of a model that knows nothing end before their limit


def make_model(tokenizer_folder: Path, folder: Path) -> None:
    """Random weights for a tokenizer, which gets more tokens that end a sequence."""
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([f"<|end{number}|>" for number in range(NUM_END_TOKENS)])
    backend.save(str(folder / "tokenizer.json"))
    vocab_size = backend.get_vocab_size()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=list(range(vocab_size - NUM_END_TOKENS, vocab_size)),
        initializer_range=0.12,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


@dataclass
class EnginePool:
    """One engine, and a record of what it was asked and what it chose."""

    engine: AsyncEngine
    requests: list[Request] = field(default_factory=list)
    token_ids: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        self.requests.append(request)
        async for delta in self.engine.generate(request):
            self.token_ids.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
            yield delta

    def end_sequence(self, request_id: str, index: int) -> None:
        self.engine.abort(request_id, index)

    def is_ready(self) -> bool:
        return True

    @property
    def num_held(self) -> int:
        return 0

    def stats(self) -> Mapping[str, ReplicaLoad]:
        return {}


@dataclass
class EngineServer:
    port: int
    pool: EnginePool
    tokenizer: Tokenizer
    model: Any  # transformers' own, on the same weights

    @property
    def end_tokens(self) -> list[int]:
        ids: list[int] = self.model.config.eos_token_id
        return ids

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0, timeout=120)

    def http(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120)

    def text(self, token_ids: list[int]) -> str:
        """What a client sees of a sequence."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def logprobs(self, token_ids: list[int]) -> torch.Tensor:
        """transformers' log-softmax: row i predicts token i + 1."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([token_ids])).logits[0]
        return logits.float().log_softmax(-1)

    def chosen(self, index: int) -> tuple[list[int], list[int]]:
        """Prompt and output tokens of one sequence of the latest request."""
        request = self.pool.requests[-1]
        return request.prompt_token_ids, self.pool.token_ids[(request.request_id, index)]


@asynccontextmanager
async def serving_engine(folder: Path) -> AsyncIterator[EngineServer]:
    config = configuration()
    model_config = config.models[0].model_copy(update={"dtype": "float32", "device": "cpu"})
    engine = AsyncEngine(build_engine(model_config, folder))
    engine.start()
    try:
        pool = EnginePool(engine)
        model = load_served_model(model_config, folder, pool, max_model_len=engine.max_model_len)
        app = build_asgi_app(config, {model.name: model}, TenantServices.of(config), Telemetry())
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        async with listening(app) as port:
            yield EngineServer(port, pool, model.tokenizer, reference.eval())
    finally:
        await engine.stop()
