"""Random-weight checkpoints of known shapes, made once and kept: speed does not depend on values.

The tokenizer is a real byte-level BPE of the shape's size, trained on the Python library's sources.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from cluster.config import shoal_home

MAX_VOCABULARY = 49_152
MAX_FILES = 3_000
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
        "head_dim": 32,
    },
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "head_dim": 64,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "head_dim": 64,
    },
}


def checkpoint(shape: str, dtype: str) -> Path:
    """The folder of a random checkpoint, made on first use under SHOAL_HOME/bench."""
    folder = shoal_home() / "bench" / f"{shape}-{dtype}"
    if (folder / "tokenizer.json").exists():
        return folder
    print(f"making {folder} …", flush=True)
    config = LlamaConfig(
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        attention_bias=False,
        mlp_bias=False,
        **SHAPES[shape],
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    train_tokenizer(min(SHAPES[shape]["vocab_size"], MAX_VOCABULARY)).save_pretrained(folder)
    return folder


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE as Llama 3's, on some tens of megabytes of sources and texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin_of_text|>", "<|eot_id|>"],
        show_progress=True,
    )
    backend.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=CHAT_TEMPLATE,
    )


def _corpus() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py"))[:MAX_FILES]:
        yield path.read_text(encoding="utf-8", errors="ignore")
