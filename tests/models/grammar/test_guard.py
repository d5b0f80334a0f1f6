import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cluster.types import GrammarKind
from models.grammar import guard as guard_module
from models.grammar.compiler import GrammarError, GrammarLimits, GrammarStepError
from tests.models.grammar.grammar_walk import Rig, byte_level_tokenizer


@pytest.fixture(scope="module")
def byte_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))
    yield rig
    rig.compiler.close()


# Hostile input: one that takes for ever hangs the test, and fails it


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def wide_schema(num_objects: int) -> dict[str, object]:
    inner = {f"q{j}": {"type": ["string", "integer"]} for j in range(20)}
    properties = {f"p{i}": {"type": "object", "properties": inner} for i in range(num_objects)}
    return {"type": "object", "properties": properties}


ENUM = [f"value {i}" for i in range(20_000)]
OPTIONAL = {f"p{i}": {"type": "string"} for i in range(200)}
CIRCULAR = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
BLOWUP = {"type": "string", "allOf": [{"pattern": f".*a.{{{i}}}"} for i in range(1, 30)]}
HOSTILE: dict[str, tuple[GrammarKind, object, bool | None]] = {
    # name: kind, text, whether it is accepted (None: either will do)
    "1 MB schema": (GrammarKind.JSON_SCHEMA, wide_schema(1300), None),
    "repetition": (GrammarKind.REGEX, "a{1,100000}", None),
    "repeated alternatives": (GrammarKind.REGEX, "(a|b|ab){1,100000}c", None),
    "long string": (GrammarKind.JSON_SCHEMA, {"type": "string", "maxLength": 100_000}, True),
    "self reference": (GrammarKind.JSON_SCHEMA, {"$ref": "#"}, False),
    "circular references": (GrammarKind.JSON_SCHEMA, CIRCULAR, False),
    "3,000 deep": (GrammarKind.JSON_SCHEMA, nested(3000), False),
    "70 deep": (GrammarKind.JSON_SCHEMA, nested(70), False),
    "50 deep": (GrammarKind.JSON_SCHEMA, nested(50), True),
    "brackets": (GrammarKind.JSON_SCHEMA, "[" * 100_000, False),
    "20,000 enum values": (GrammarKind.JSON_SCHEMA, {"enum": ENUM}, True),
    "20,000 choices": (GrammarKind.CHOICE, ENUM, True),
    "200 optional": (GrammarKind.JSON_SCHEMA, {"type": "object", "properties": OPTIONAL}, True),
    "doubled repetition": (GrammarKind.REGEX, "a{1000}{1000}", False),
    "nested repetition": (GrammarKind.REGEX, "(a{1000}){1000}", False),
    "exponential automaton": (GrammarKind.REGEX, ".*a.{20}", None),
    "nested ranges": (GrammarKind.REGEX, "(x{1,200}){1,200}y", None),
    "nested stars": (GrammarKind.REGEX, "(((((a*)*)*)*)*)*b", True),
    "5,000 groups": (GrammarKind.REGEX, "(" * 5000 + "a" + ")" * 5000, False),
    "half a surrogate": (GrammarKind.REGEX, "\ud800", False),
    "half a surrogate in JSON": (GrammarKind.CHOICE, '["\\ud800"]', False),
    "NUL": (GrammarKind.REGEX, "a\x00b", True),
    "ambiguous grammar": (GrammarKind.EBNF, 'start: a\na: a a | "x" | a a a', None),
    "3,000 groups of EBNF": (GrammarKind.EBNF, "root ::= " + "(" * 3000, False),
    "intersection of patterns": (GrammarKind.JSON_SCHEMA, BLOWUP, False),
    "big multiple": (GrammarKind.JSON_SCHEMA, {"type": "integer", "multipleOf": 999999937}, None),
    "guidance options": (GrammarKind.EBNF, '%llguidance {"no_forcing": true}\nstart: "a"', False),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_are_refused_or_served_in_bounded_time(byte_rig: Rig, name: str) -> None:
    kind, text, is_accepted = HOSTILE[name]
    refusal = ""
    try:
        byte_rig.walker.walk(byte_rig.matcher(kind, text), 1, max_tokens=60)
    except GrammarError as error:
        refusal = str(error)
    except GrammarStepError:
        is_accepted = None if is_accepted is None else not is_accepted
    assert is_accepted is None or is_accepted == (not refusal), refusal
    assert len(refusal) < 500
    assert byte_rig.texts(GrammarKind.CHOICE, ["still", "here"], count=1)


def test_memory_stays_flat_under_ever_new_grammars(tmp_path: Path) -> None:
    path = byte_level_tokenizer(tmp_path / "tokenizer.json")
    rig = Rig(path, GrammarLimits(cache_entries=16, num_guards=1))
    process = psutil.Process()

    def churn(start: int) -> int:
        for number in range(start, start + 150):
            schema = {"type": "object", "properties": {f"k{number}": {"maxLength": number}}}
            rig.walker.walk(rig.matcher(GrammarKind.JSON_SCHEMA, schema), number, max_tokens=20)
            with pytest.raises(GrammarError):
                rig.matcher(GrammarKind.REGEX, f"(?={number})")
        return process.memory_info().rss

    before = churn(0)
    after = max(churn(1000), churn(2000))
    rig.compiler.close()
    assert after - before < 24 * 1024 * 1024


def test_a_guard_that_dies_is_replaced_and_only_that_request_fails(tmp_path: Path) -> None:
    limits = GrammarLimits(num_guards=1)
    rig = Rig(byte_level_tokenizer(tmp_path / "tokenizer.json"), limits)
    rig.matcher(GrammarKind.CHOICE, ["a"])
    guard = the_guard()
    guard.kill()
    guard.wait(120)
    with pytest.raises(GrammarError, match="memory"):
        rig.matcher(GrammarKind.CHOICE, ["b"])
    assert rig.texts(GrammarKind.CHOICE, ["c"], count=1) == ["c"]
    rig.compiler.close()


def test_too_much_work_is_a_refusal(tmp_path: Path) -> None:
    limits = GrammarLimits(num_guards=1, compile_timeout_s=0.3)
    rig = Rig(byte_level_tokenizer(tmp_path / "tokenizer.json"), limits)
    with pytest.raises(GrammarError, match=r"takes longer than 0\.3 s"):
        rig.matcher(GrammarKind.JSON_SCHEMA, BLOWUP)
    assert rig.texts(GrammarKind.CHOICE, ["c"], count=1) == ["c"]
    rig.compiler.close()


def the_guard() -> psutil.Process:
    children = psutil.Process().children()
    return [child for child in children if "models.grammar.guard" in child.cmdline()][-1]


def test_a_guard_that_the_machine_lets_wait_refuses_nothing(tmp_path: Path) -> None:
    limits = GrammarLimits(num_guards=1, compile_timeout_s=0.5)
    rig = Rig(byte_level_tokenizer(tmp_path / "tokenizer.json"), limits)
    rig.matcher(GrammarKind.CHOICE, ["a"])
    guard = the_guard()
    guard.suspend()
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(rig.texts, GrammarKind.CHOICE, ["b"], count=1)
        time.sleep(0.6)  # more than it may take of the processor's time
        guard.resume()
        assert compiling.result() == ["b"]
    rig.compiler.close()


def test_a_guard_that_stays_silent_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = GrammarLimits(num_guards=1, compile_timeout_s=0.5)
    rig = Rig(byte_level_tokenizer(tmp_path / "tokenizer.json"), limits)
    rig.matcher(GrammarKind.CHOICE, ["a"])
    the_guard().suspend()
    with monkeypatch.context() as patch:
        patch.setattr(guard_module, "_PATIENCE", 1)
        with pytest.raises(GrammarError, match="takes longer"):
            rig.matcher(GrammarKind.CHOICE, ["b"])
    assert rig.texts(GrammarKind.CHOICE, ["c"], count=1) == ["c"]
    rig.compiler.close()


def test_too_much_memory_is_a_refusal(tmp_path: Path) -> None:
    limits = GrammarLimits(num_guards=1, guard_memory_bytes=16 * 1024 * 1024)
    rig = Rig(byte_level_tokenizer(tmp_path / "tokenizer.json"), limits)
    with pytest.raises(GrammarError, match="memory"):
        rig.matcher(GrammarKind.REGEX, "(a{1000}){1000}")
    assert rig.texts(GrammarKind.CHOICE, ["c"], count=1) == ["c"]
    rig.compiler.close()
