"""Random-weight checkpoints of known shapes, made once and kept: speed does not depend on values.

The tokenizer is a real byte-level BPE of the shape's size, trained on the Python library's sources.

    python -m scripts.bench.checkpoints 135m bfloat16     # makes it where needed, prints its folder
"""

import argparse
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

DTYPES = ("bfloat16", "float16", "float32")
LONG_CONTEXT = 131_072
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
    "demo": {
        "vocab_size": 2048,
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 704,
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
#: Those of Llama 3.1, whose head is not its embedding; random weights are made on the GPU.
GPU_SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "head_dim": 128,
    },
    "70b": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "head_dim": 128,
    },
}


def checkpoint(shape: str, dtype: str) -> Path:
    """The folder of a random checkpoint, made on first use under SHOAL_HOME/bench."""
    folder = shoal_home() / "bench" / f"{shape}-{dtype}"
    if (folder / "tokenizer.json").exists():
        return folder
    print(f"making {folder} …", flush=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(shape, max_positions=4096))
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    train_tokenizer(min(SHAPES[shape]["vocab_size"], MAX_VOCABULARY)).save_pretrained(folder)
    return folder


def shape_folder(shape: str, dtype: str) -> Path:
    """A folder with a shape's config.json alone, for `LONG_CONTEXT` positions: whoever reads it
    makes the weights up."""
    config = _config(shape, max_positions=LONG_CONTEXT)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = dtype
    folder = shoal_home() / "bench" / f"{shape}-{dtype}-shape"
    config.save_pretrained(folder)
    return folder


def _config(shape: str, *, max_positions: int) -> LlamaConfig:
    return LlamaConfig(
        max_position_embeddings=max_positions,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=shape in SHAPES,
        bos_token_id=0,
        eos_token_id=1,
        attention_bias=False,
        mlp_bias=False,
        **{**SHAPES, **GPU_SHAPES}[shape],
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=tuple(SHAPES))
    parser.add_argument("dtype", choices=DTYPES)
    arguments = parser.parse_args()
    print(checkpoint(arguments.shape, arguments.dtype))


if __name__ == "__main__":
    main()
