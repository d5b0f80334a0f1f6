"""Text that grows with the tokens is the text of the whole, wherever the tokens were split."""

import itertools

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from models.detokenizer import Detokenizer, StopStringChecker
from models.tokenizer import Tokenizer

CORPUS = ["the cat sat on the mat", "größer als zuvor", "名前は何", "🙂🙃 emoji", "a b  c\n\td"]


def byte_level() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 5, trainer)
    backend.add_tokens(["<tool call>"])
    return Tokenizer(backend)


def sentencepiece(*, strips: bool = True) -> Tokenizer:
    words = ["▁the", "▁cat", "▁", "▁▁", "the", "c", "a", "t", "▁größe", "r", "。", "\n"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {word: 259 + position for position, word in enumerate(words)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips:
        chain.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(chain)
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend)


def metaspace() -> Tokenizer:
    vocab = {"▁the": 0, "▁▁cat": 1, "s": 2, "▁": 3}
    backend = tokenizers.Tokenizer(models.Unigram([(t, -1.0) for t in vocab], unk_id=0))
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend)


BYTE_LEVEL, SENTENCEPIECE, METASPACE = byte_level(), sentencepiece(), metaspace()
UNSTRIPPED = sentencepiece(strips=False)


def in_pieces(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(edges)]
    return "".join(pieces) + detokenizer.flush()


CUTS = st.lists(st.integers(0, 40), max_size=8)


@settings(max_examples=400)
@given(ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=40), cuts=CUTS)
def test_any_byte_level_tokens_give_the_text_of_the_whole(ids: list[int], cuts: list[int]) -> None:
    whole = BYTE_LEVEL.decode(ids, skip_special_tokens=True)
    assert in_pieces(BYTE_LEVEL, ids, cuts) == whole


def word_or_character(data: st.DataObject) -> list[int]:
    """Ids of a whole word, or the byte tokens of a whole character."""
    if data.draw(st.booleans()):
        return [data.draw(st.sampled_from([1, 2, *range(259, SENTENCEPIECE.vocab_size)]))]
    return [3 + byte for byte in data.draw(st.sampled_from("é€🙂 \n名a")).encode()]


@pytest.mark.parametrize("tokenizer", [SENTENCEPIECE, UNSTRIPPED], ids=["strips", "keeps"])
@settings(max_examples=300)
@given(data=st.data(), cuts=CUTS)
def test_sentencepiece_tokens_cut_off_anywhere_give_the_text_of_the_whole(
    tokenizer: Tokenizer, data: st.DataObject, cuts: list[int]
) -> None:
    ids = [i for _ in range(data.draw(st.integers(0, 10))) for i in word_or_character(data)]
    assert in_pieces(tokenizer, ids, cuts) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, SENTENCEPIECE.vocab_size - 1), max_size=30), cuts=CUTS)
def test_broken_byte_runs_do_not_depend_on_the_split(ids: list[int], cuts: list[int]) -> None:
    assert in_pieces(SENTENCEPIECE, ids, cuts) == in_pieces(SENTENCEPIECE, ids, [])


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 3), max_size=6), cuts=CUTS)
def test_metaspace_tokens_give_the_text_of_the_whole(ids: list[int], cuts: list[int]) -> None:
    assert in_pieces(METASPACE, ids, cuts) == METASPACE.decode(ids, skip_special_tokens=True)


def test_an_incomplete_character_is_shown_once_it_is_known() -> None:
    ids = [BYTE_LEVEL.token_id(char) for char in "âĤ¬"]  # the bytes of € in the alphabet
    detokenizer = Detokenizer(BYTE_LEVEL)
    assert [detokenizer.push([i]) for i in ids if i is not None] == ["", "", "€"]
    assert detokenizer.flush() == ""


def test_an_incomplete_character_at_the_end_becomes_a_replacement_character() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL)
    assert detokenizer.push([BYTE_LEVEL.token_id("â") or 0]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_text_that_continues_another_keeps_its_first_space() -> None:
    cat = SENTENCEPIECE.token_id("▁cat")
    assert cat is not None
    assert Detokenizer(SENTENCEPIECE).push([cat]) == "cat"
    assert Detokenizer(SENTENCEPIECE, continues_text=True).push([cat]) == " cat"


def test_special_tokens_that_are_asked_for_are_part_of_the_text() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("<|bos|>größ", add_special_tokens=False)[:-1]  # "ß" is cut in two
    eos = tokenizer.token_id("<|eos|>")
    assert eos is not None
    shown = Detokenizer(tokenizer, shown_special_ids=frozenset({eos}))
    assert shown.push([*ids, eos]) + shown.flush() == (
        tokenizer.decode(ids, skip_special_tokens=True) + "<|eos|>"
    )
    hidden = Detokenizer(tokenizer)
    assert "<|eos|>" not in hidden.push([*ids, eos]) + hidden.flush()


def test_ids_outside_the_tokenizer_have_no_text() -> None:
    assert Detokenizer(BYTE_LEVEL).push([BYTE_LEVEL.vocab_size, 10**9]) == ""


# Stop strings


def shown(text: str, stops: list[str], cuts: list[int]) -> tuple[str, bool]:
    checker = StopStringChecker(stops)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    out = ""
    for start, end in itertools.pairwise(edges):
        out += checker.push(text[start:end])
        if checker.is_stopped:
            return out, True
    return out + checker.flush(), False


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


SMALL_TEXT = st.text(alphabet="ab", max_size=24)


@settings(max_examples=800)
@given(
    text=SMALL_TEXT,
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 24), max_size=24),
)
def test_the_first_stop_string_ends_the_text_wherever_it_was_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    assert shown(text, stops, cuts) == expected(text, stops)


@settings(max_examples=300)
@given(text=SMALL_TEXT, stop=st.text(alphabet="ab", min_size=1, max_size=6))
def test_no_more_is_held_back_than_could_begin_a_stop_string(text: str, stop: str) -> None:
    checker = StopStringChecker([stop])
    seen = out = ""
    for char in text:
        seen += char
        out += checker.push(char)
        if checker.is_stopped:
            return
        could_begin = [k for k in range(len(stop)) if seen.endswith(stop[:k])]
        assert len(out) == len(seen) - max(could_begin)


def test_a_beginning_that_came_to_nothing_is_shown_at_the_end() -> None:
    checker = StopStringChecker(["END"])
    assert checker.push("the E") == "the "
    assert checker.push("N") == ""
    assert checker.flush() == "EN"
    assert not checker.is_stopped
