"""Random-weight checkpoints of known shapes, made once and kept: speed does not depend on values.

The tokenizer is the demo model's, whatever the vocabulary: benchmarks send token ids.
"""

import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from cluster.config import shoal_home
from cluster.model_source import DEMO_SOURCE, resolve_model_source

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
    for name in ("tokenizer_config.json", "chat_template.jinja", "tokenizer.json"):
        source = resolve_model_source(DEMO_SOURCE) / name
        if source.exists():
            shutil.copy(source, folder / name)
    return folder
