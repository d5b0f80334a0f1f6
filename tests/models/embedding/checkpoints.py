"""Tiny random embedding checkpoints with tokenizers of their own, as people publish them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    "The warranty of a kettle is two years.",
    "Berlin",
    "Offices open at nine and close at five, but on Fridays they close at three. " * 3,
    "wer reitet so spät durch Nacht und Wind? Es ist der Vater mit seinem Kind.",
    "1, 2, 3",
)
WIDTH = 32

_SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,  # so that token and position matter, and attention is not flat
}
_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (
        transformers.BertConfig,
        transformers.BertModel,
        {"max_position_embeddings": 128, "pad_token_id": 0},
    ),
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaModel,
        {"max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "mpnet": (
        transformers.MPNetConfig,
        transformers.MPNetModel,
        {"max_position_embeddings": 130, "pad_token_id": 1},
    ),
    "distilbert": (
        transformers.DistilBertConfig,
        transformers.DistilBertModel,
        {
            "dim": WIDTH,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
        },
    ),
    "t5": (
        transformers.T5Config,
        transformers.T5EncoderModel,
        {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "qwen3": (
        transformers.Qwen3Config,
        transformers.Qwen3Model,
        {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256},
    ),
}


def tokenizer(family: str) -> tokenizers.Tokenizer:
    """Special tokens around a text as the family has them; the padding is token 0 or 1."""
    if family == "qwen3":
        special = ["<|im_end|>", "<|endoftext|>"]
        before, after = [], ["<|endoftext|>"]
    elif family in ("roberta", "mpnet"):
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        before, after = ["<s>"], ["</s>"]
    elif family == "t5":
        special = ["<pad>", "</s>", "<unk>"]
        before, after = [], ["</s>"]
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        before, after = ["[CLS]"], ["[SEP]"]
    backend = tokenizers.Tokenizer(models.BPE(unk_token=None))
    if family in ("bert", "distilbert"):
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    around = " ".join([*before, "$A", *after])
    backend.post_processor = processors.TemplateProcessing(
        single=around,
        special_tokens=[(token, backend.token_to_id(token)) for token in special],
    )
    return backend


def save_checkpoint(folder: Path, family: str = "bert", *, seed: int = 0, **config: Any) -> Path:
    """A plain checkpoint: model, tokenizer, no word about pooling."""
    config_class, model_class, shape = _FAMILIES[family]
    torch.manual_seed(seed)
    model_config = config_class(**({"vocab_size": 400} | _SHAPE | shape | config))
    model = model_class(model_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(family)).save_pretrained(folder)
    return folder


def add_layout(
    folder: Path,
    pooling: str | Sequence[str] = "mean",
    *,
    dense: Sequence[tuple[int, str]] = (),
    is_normalized: bool = True,
    **encoder_config: Any,
) -> Path:
    """sentence-transformers' files around a plain checkpoint. `dense`: widths and activations."""
    names = [pooling] if isinstance(pooling, str) else list(pooling)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (folder / "1_Pooling").mkdir()
    keys = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")
    keys += ("weightedmean_tokens", "lasttoken")
    short = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
    short["weightedmean"] = "weightedmean_tokens"
    chosen = {short.get(name, name) for name in names}
    flags = {f"pooling_mode_{key}": key in chosen for key in keys}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH} | flags)
    width = WIDTH * len(names)
    for position, (num_outputs, activation) in enumerate(dense, 2):
        place = f"{position}_Dense"
        modules.append(("Dense", place))
        save_dense(folder / place, width, num_outputs, activation)
        width = num_outputs
    if is_normalized:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)
    if encoder_config:
        write_json(folder / "sentence_bert_config.json", encoder_config)
    return folder


def save_dense(folder: Path, num_inputs: int, num_outputs: int, activation: str) -> None:
    folder.mkdir()
    config = {
        "in_features": num_inputs,
        "out_features": num_outputs,
        "bias": True,
        "activation_function": activation,
    }
    write_json(folder / "config.json", config)
    torch.manual_seed(num_outputs)
    weights = {
        "linear.weight": torch.randn(num_outputs, num_inputs) / 4,
        "linear.bias": torch.randn(num_outputs),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    write_json(path, value)
