import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from cluster.types import GrammarKind, GrammarSpec
from models.grammar.compiler import (
    GrammarCompiler,
    GrammarError,
    GrammarLimits,
    GrammarMatcher,
    GrammarStepError,
    MaskFiller,
    mask_words,
)
from tests.models.grammar.grammar_walk import (
    EOS_TOKEN_IDS,
    SPECIAL_TOKENS,
    TOOL_TOKEN_ID,
    Rig,
    allowed_tokens,
    byte_level_tokenizer,
    load_tokenizer,
    sentencepiece_tokenizer,
)

SENTENCES = r"(\w+\s*){1,20}[\.!?]"


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    make = {"byte_level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}
    path = make[request.param](tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    rig = Rig(path)
    yield rig
    rig.compiler.close()


@pytest.fixture(scope="module")
def byte_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))
    yield rig
    rig.compiler.close()


# What comes out


def test_json_object_is_always_an_object(rig: Rig) -> None:
    for text in rig.texts(GrammarKind.JSON_OBJECT, ""):
        assert isinstance(json.loads(text), dict)
    assert not rig.takes(GrammarKind.JSON_OBJECT, "", "[1]")


def test_json_may_be_written_compact_spaced_or_indented_but_not_with_endless_blanks(
    rig: Rig,
) -> None:
    value = {"a": [1, {"b": "c"}], "d": None}
    for written in (
        json.dumps(value),
        json.dumps(value, separators=(",", ":")),
        json.dumps(value, indent=2),
        json.dumps(value, indent="\t"),
    ):
        assert rig.takes(GrammarKind.JSON_OBJECT, "", written)
    assert not rig.takes(GrammarKind.JSON_OBJECT, "", '{"a":  1}')
    assert not rig.takes(GrammarKind.JSON_OBJECT, "", '{"a": 1\n\n}')
    assert not rig.takes(GrammarKind.JSON_OBJECT, "", ' {"a": 1}')


def test_choice_gives_exactly_one_of_the_strings(rig: Rig) -> None:
    choices = ["yes", "no", "yes, but", 'quo"te', "日本", "😀", "new\nline", "yes"]
    seen = set(rig.texts(GrammarKind.CHOICE, choices, count=60))
    assert seen <= set(choices)
    assert len(seen) >= 4


@pytest.mark.parametrize(
    "pattern",
    [
        SENTENCES,
        r"\d{3}-[a-f]{2}",
        r"^(GET|POST) /[\w/]*$",
        r"[^\d\s]{3}",
        r"(?i)yes|no",
        r"\W\S\D",
        r"[é-ü]+|日本",
        r"(?P<year>\d{4})-(?:0[1-9]|1[0-2])",
        r"[\[\]&~-]{2,4}",
        r"a{2,}?b*?",
        r".{1,9}@.{1,9}",
    ],
)
def test_regex_output_matches_the_whole_expression_in_python_too(rig: Rig, pattern: str) -> None:
    for text in rig.texts(GrammarKind.REGEX, pattern):
        assert re.fullmatch(pattern, text), text


def test_word_characters_are_ascii_and_their_complement_leaves_out_every_script(rig: Rig) -> None:
    assert not rig.takes(GrammarKind.REGEX, r"\w+", "é")
    assert not rig.takes(GrammarKind.REGEX, r"\W+", "é")
    assert rig.takes(GrammarKind.REGEX, r"\p{L}+", "é")


def test_ebnf_in_gbnf_and_in_lark_notation(rig: Rig) -> None:
    gbnf = 'root ::= "<" [a-z]+ ("," [0-9]{2})* ">"'
    lark = 'start: "<" WORD ("," /[0-9]{2}/)* ">"\nWORD: /[a-z]+/'
    for grammar in (gbnf, lark):
        for text in rig.texts(GrammarKind.EBNF, grammar):
            assert re.fullmatch(r"<[a-z]+(,[0-9]{2})*>", text)


def test_a_json_schema_inside_of_lark_is_checked_and_enforced(rig: Rig) -> None:
    grammar = 'start: "call " %json {"type": "object", "required": ["n"]} "."'
    for text in rig.texts(GrammarKind.EBNF, grammar):
        assert "n" in json.loads(text[5:-1])
    with pytest.raises(GrammarError, match=r"line 1.*#/not.*`not` is not supported"):
        rig.matcher(GrammarKind.EBNF, 'start: %json {"not": {}}')


def test_only_our_own_lark_may_name_special_tokens(rig: Rig) -> None:
    grammar = f'start: {SPECIAL_TOKENS[TOOL_TOKEN_ID]} "x"'
    assert allowed_tokens(rig.matcher(GrammarKind.LARK, grammar), rig.vocab_size) == [TOOL_TOKEN_ID]
    with pytest.raises(GrammarError, match="special token"):
        rig.matcher(GrammarKind.EBNF, grammar)


# Tokens


def test_end_of_sequence_is_allowed_exactly_where_the_grammar_may_end(rig: Rig) -> None:
    matcher = rig.matcher(GrammarKind.REGEX, "ab?")
    assert not EOS_TOKEN_IDS & set(allowed_tokens(matcher, rig.vocab_size))
    matcher.accept(_token(rig, b"a"))
    assert _next_bytes(rig, matcher) == {b"b"}
    assert set(allowed_tokens(matcher, rig.vocab_size)) >= EOS_TOKEN_IDS
    assert matcher.may_end
    assert not matcher.is_finished
    matcher.accept(_token(rig, b"b"))
    assert matcher.is_finished
    assert set(allowed_tokens(matcher, rig.vocab_size)) == EOS_TOKEN_IDS
    matcher.accept(max(EOS_TOKEN_IDS))
    assert matcher.is_finished


def test_text_is_not_spelled_with_a_token_that_ends_the_sequence(tmp_path: Path) -> None:
    path = byte_level_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(path)
    (end,) = tokenizer.encode(" the", add_special_tokens=False)
    with GrammarCompiler(path, vocab_size=545, eos_token_ids=frozenset({end})) as compiler:
        spec = GrammarSpec(kind=GrammarKind.CHOICE, text='["over the moon"]')
        matcher = compiler.compile(spec).matcher()
        spelled = b""
        while (allowed := allowed_tokens(matcher, 545)) != [end]:
            matcher.accept(allowed[-1])
            spelled += tokenizer.token_bytes(allowed[-1])
    assert spelled == b"over the moon"


def test_special_and_padding_tokens_are_never_allowed_in_text(rig: Rig) -> None:
    matcher = rig.matcher(GrammarKind.REGEX, r"(?s).*")
    allowed = set(allowed_tokens(matcher, rig.vocab_size))
    assert TOOL_TOKEN_ID not in allowed
    assert max(allowed) < rig.tokenizer.vocab_size


def test_a_character_may_be_spelled_in_parts_but_never_left_in_half(rig: Rig) -> None:
    matcher = rig.matcher(GrammarKind.REGEX, ".")
    for byte in "😀".encode()[:-1]:
        allowed = allowed_tokens(matcher, rig.vocab_size)
        assert not EOS_TOKEN_IDS & set(allowed)
        matcher.accept(_token(rig, bytes([byte])))
    assert not matcher.may_end


def test_a_token_that_is_not_allowed_ends_its_sequence(rig: Rig) -> None:
    matcher = rig.matcher(GrammarKind.CHOICE, ["a"])
    with pytest.raises(GrammarStepError, match="token"):
        matcher.accept(_token(rig, b"b"))


def test_a_fork_goes_its_own_way(rig: Rig) -> None:
    matcher = rig.matcher(GrammarKind.CHOICE, ["ab", "ac"])
    matcher.accept(_token(rig, b"a"))
    fork = matcher.fork()
    fork.accept(_token(rig, b"b"))
    assert fork.is_finished
    assert _next_bytes(rig, matcher) == {b"b", b"c"}


def test_matchers_of_one_grammar_are_independent(rig: Rig) -> None:
    first, second = (rig.matcher(GrammarKind.CHOICE, ["ab", "cd"]) for _ in range(2))
    first.accept(_token(rig, b"a"))
    assert _token(rig, b"a") in allowed_tokens(second, rig.vocab_size)


def test_forced_tokens_spell_what_must_follow(byte_rig: Rig) -> None:
    matcher = byte_rig.matcher(GrammarKind.CHOICE, ["the name", "the nose"])
    forced = matcher.forced_tokens()
    text = b"".join(byte_rig.tokenizer.token_bytes(token_id) for token_id in forced)
    assert text
    assert b"the n".startswith(text)
    for token_id in forced:
        assert token_id in allowed_tokens(matcher, byte_rig.vocab_size)
        matcher.accept(token_id)
    open_choice = byte_rig.matcher(GrammarKind.CHOICE, ["a", "b"])
    assert open_choice.forced_tokens() == []


def test_a_walk_cut_anywhere_is_the_beginning_of_a_document(rig: Rig) -> None:
    schema = {"type": "array", "items": {"enum": ["é", 12, {"k": None}]}, "minItems": 2}
    walk = rig.walker.walk(rig.matcher(GrammarKind.JSON_SCHEMA, schema), 5)
    for cut in range(len(walk.token_ids)):
        matcher = rig.matcher(GrammarKind.JSON_SCHEMA, schema)
        for token_id in walk.token_ids[:cut]:
            matcher.accept(token_id)
        rest = rig.walker.walk(matcher, cut)
        data = b"".join(rig.tokenizer.token_bytes(t) for t in walk.token_ids[:cut]) + rest.data
        if rest.is_complete:
            jsonschema.validate(json.loads(data), schema)


# Limits and sharing


def test_a_step_over_its_limit_ends_that_row_only(tmp_path: Path) -> None:
    limits = GrammarLimits(num_guards=1, probe_steps=0, step_lexer_fuel=2_000)
    rig = Rig(byte_level_tokenizer(tmp_path / "tokenizer.json"), limits)
    good = rig.matcher(GrammarKind.CHOICE, ["a"])
    bad = rig.matcher(GrammarKind.REGEX, ".*a.{20}")
    chooser = random.Random(0)
    filler = MaskFiller(num_threads=2)
    masks = np.zeros((2, mask_words(rig.vocab_size)), dtype=np.int32)
    failed: dict[int, GrammarStepError] = {}
    for _ in range(200):
        failed = filler.fill([good, bad], masks)
        if failed:
            break
        bad.accept(chooser.choice([_token(rig, b"a"), _token(rig, b"b")]))
    assert set(failed) == {1}
    assert _bits(masks[0]) == set(allowed_tokens(good, rig.vocab_size))
    with pytest.raises(GrammarStepError):
        bad.fill_mask(masks[1])
    rig.compiler.close()


def test_equal_grammars_are_compiled_once_and_refusals_are_remembered(byte_rig: Rig) -> None:
    spec = GrammarSpec(kind=GrammarKind.REGEX, text="[a-z]{1,99}once")
    assert byte_rig.compiler.compile(spec) is byte_rig.compiler.compile(spec)
    refused = GrammarSpec(kind=GrammarKind.REGEX, text="(?=x)")
    errors = []
    for _ in range(2):
        with pytest.raises(GrammarError) as caught:
            byte_rig.compiler.compile(refused)
        errors.append(caught.value)
    assert errors[0] is errors[1]


def test_the_cache_forgets_the_grammar_that_was_not_used_for_longest(tmp_path: Path) -> None:
    limits = GrammarLimits(num_guards=1, cache_entries=2)
    rig = Rig(byte_level_tokenizer(tmp_path / "tokenizer.json"), limits)
    a, b, c = (GrammarSpec(kind=GrammarKind.REGEX, text=text) for text in "abc")
    first, second = rig.compiler.compile(a), rig.compiler.compile(b)
    assert rig.compiler.compile(a) is first
    rig.compiler.compile(c)
    assert rig.compiler.compile(a) is first
    assert rig.compiler.compile(b) is not second
    rig.compiler.close()


def test_many_threads_compile_and_walk_at_once(byte_rig: Rig) -> None:
    barrier = threading.Barrier(8)

    def work(thread: int) -> None:
        barrier.wait(30)
        for number in range(6):
            shared, own = f"[a-z]{{{number + 1}}}", f"[a-z]{{{number + 1}}}{thread}"
            for pattern in (shared, own):
                walk = byte_rig.walker.walk(byte_rig.matcher(GrammarKind.REGEX, pattern), thread)
                assert re.fullmatch(pattern, walk.text)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, thread) for thread in range(8)]:
            future.result()


def test_a_batch_of_masks_equals_the_masks_one_by_one(byte_rig: Rig) -> None:
    specs = [
        (GrammarKind.JSON_OBJECT, ""),
        (GrammarKind.REGEX, SENTENCES),
        None,
        (GrammarKind.CHOICE, ["a", "b"]),
        (GrammarKind.JSON_SCHEMA, {"type": "integer"}),
    ]
    matchers = [None if spec is None else byte_rig.matcher(*spec) for spec in specs]
    filler = MaskFiller(num_threads=2)
    masks = np.full((len(specs), mask_words(byte_rig.vocab_size)), -1, dtype=np.int32)
    chooser = random.Random(1)
    for _ in range(12):
        assert filler.fill(matchers, masks) == {}
        for row, matcher in enumerate(matchers):
            if matcher is None:
                assert (masks[row] == -1).all()
                continue
            allowed = allowed_tokens(matcher.fork(), byte_rig.vocab_size)
            assert _bits(masks[row]) == set(allowed)
            matcher.accept(chooser.choice(allowed))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    path = byte_level_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="do not fit a vocabulary of 100"):
        GrammarCompiler(path, vocab_size=100, eos_token_ids=EOS_TOKEN_IDS)


def test_no_torch_is_needed() -> None:
    code = "import sys, models.grammar; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def _bits(row: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def _next_bytes(rig: Rig, matcher: GrammarMatcher) -> set[bytes]:
    allowed = allowed_tokens(matcher, rig.vocab_size)
    return {rig.tokenizer.token_bytes(t) for t in allowed if t not in EOS_TOKEN_IDS}


def _token(rig: Rig, data: bytes) -> int:
    """The token for one byte."""
    for token_id in range(rig.tokenizer.vocab_size):
        if rig.tokenizer.token_bytes(token_id) == data:
            return token_id
    raise AssertionError(f"no token is {data!r}")


def test_a_closed_compiler_refuses_instead_of_waiting(tmp_path: Path) -> None:
    compiler = GrammarCompiler(
        byte_level_tokenizer(tmp_path / "tokenizer.json"),
        vocab_size=545,
        eos_token_ids=EOS_TOKEN_IDS,
    )
    compiler.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            compiler.compile(GrammarSpec(kind=GrammarKind.REGEX, text="abc"))
