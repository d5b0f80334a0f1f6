"""Tiny random checkpoints made by transformers, and a driver that runs steps on them by hand."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from models.grammar.compiler import GrammarCompiler
from models.native.library import SWITCH, native_library
from tests.models.family_samples import FAMILIES, VOCAB_SIZE, FamilySample
from tests.models.grammar.grammar_walk import EOS_TOKEN_IDS, byte_level_tokenizer

_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "qwen3 moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}

_SHAPE = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Random weights of the usual scale (0.02) would leave logits nearly equal.
    "initializer_range": 0.15,
}

MakeCheckpoint = Callable[..., Path]
FindSample = Callable[[str], FamilySample]


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(min(2, num_threads))
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine that has no compiler: all operations are torch's."""
    monkeypatch.setenv(SWITCH, "0")
    native_library.cache_clear()
    yield
    native_library.cache_clear()


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """`make_checkpoint(family, dtype=..., seed=..., max_shard_size=..., **config)` → its folder.

    Norms and biases are random too, so that leaving one out shows.
    """

    def make(
        family: str = "llama",
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        max_shard_size: str = "1GB",
        **overrides: object,
    ) -> Path:
        config_class, model_class = _CLASSES[family]
        torch.manual_seed(seed)
        model = model_class(config_class(**(_SHAPE | overrides)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.3)
        folder = tmp_path_factory.mktemp(family)
        model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return make


@pytest.fixture(scope="session")
def family_sample(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FindSample]:
    """One of `FAMILIES` by its name, made when it is first asked for."""
    tokenizer_path = byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    with GrammarCompiler(
        tokenizer_path, vocab_size=VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS
    ) as compiler:

        @cache
        def find(name: str) -> FamilySample:
            family, seed, overrides = FAMILIES[name]
            shape = {**_SHAPE, **overrides, "vocab_size": VOCAB_SIZE}
            shape["eos_token_id"] = sorted(EOS_TOKEN_IDS)
            folder = make_checkpoint(family, seed=seed, **shape)
            return FamilySample(
                folder, compiler, int(shape["num_key_value_heads"]), int(shape["head_dim"])
            )

        yield find
