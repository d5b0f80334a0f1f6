"""A byte-level tokenizer with the markers of all call formats, special and not."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from models.tokenizer import Tokenizer

SPECIAL = ["<|bos|>", "<|eos|>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"]
PLAIN = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(['{"name": "get_weather", "parameters": '] * 9, trainer)
    backend.add_tokens([AddedToken(token, special=False) for token in PLAIN])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_file.parent)
