"""A tokenizer knows the true bytes of its tokens and refuses what it cannot decode."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from models.tokenizer import Tokenizer, TokenizerError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello there"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    backend.enable_truncation(max_length=2)  # left over from training
    path = tmp_path_factory.mktemp("checkpoint")
    backend.save(str(path / "tokenizer.json"))
    config = {"bos_token": {"content": "<|bos|>"}, "eos_token": "<|eos|>", "other": 1}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_special_tokens_come_from_the_configuration(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.special_ids == {0, 1}


def test_encoding_adds_special_tokens_only_when_asked(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    plain = tokenizer.encode("hello there", add_special_tokens=False)
    assert tokenizer.encode("hello there", add_special_tokens=True) == [0, *plain]
    assert tokenizer.decode([0, *plain, 1], skip_special_tokens=True) == "hello there"


def test_a_strangers_text_has_no_special_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.as_plain_text("hello <|there|> <") == "hello <|there|> <"
    for text in ("<|eos|>", "a<|eos|><|bos|>b", "<|e<|eos|>os|>", "<<|eos|>|eos|>"):
        plain = tokenizer.as_plain_text(text)
        assert not tokenizer.special_ids & set(tokenizer.encode(plain, add_special_tokens=False))
        assert plain.replace(" ", "") == text


def test_a_truncation_saved_in_the_file_does_not_cut_prompts(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert len(tokenizer.encode("xyz" * 50, add_special_tokens=False)) == 150


def test_special_tokens_written_out_in_a_text_are_those_tokens(folder: Path) -> None:
    assert Tokenizer.from_folder(folder).encode("<|eos|>", add_special_tokens=False) == [1]


@pytest.mark.parametrize("text", ["hello there", "naïve €uro", "🙂", "\x00\x7f\n", "名前"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_special_tokens_have_the_bytes_they_are_written_with(folder: Path) -> None:
    assert Tokenizer.from_folder(folder).token_bytes(1) == b"<|eos|>"


def test_an_id_outside_the_vocabulary_has_no_bytes(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.token_bytes(-1) == b""


def test_sentencepiece_tokens_have_spaces_and_single_bytes() -> None:
    vocab = {"▁the": 0, "<0xE2>": 1, "<0xZZ>": 2, "x": 3}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer = Tokenizer(backend)
    assert [tokenizer.token_bytes(i) for i in range(4)] == [b" the", b"\xe2", b"<0xZZ>", b"x"]


def test_a_decoder_that_we_cannot_follow_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece(vocab={"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece"):
        Tokenizer(backend)


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
