"""Forced outputs are always valid calls; free ones may say anything but a broken call."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import tokenizers

from cluster.types import GrammarKind
from models.tokenizer import Tokenizer
from models.tool_parsing.call_format import CallFormat, GuidedFunction
from models.tool_parsing.hermes import Hermes
from models.tool_parsing.llama_json import LlamaJSON
from models.tool_parsing.mistral import Mistral
from models.tool_parsing.thinking import Thinking
from tests.models.grammar.grammar_walk import Rig
from tests.models.tool_parsing.parsed import parse

SCHEMAS: dict[str, dict[str, object]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "maxItems": 2},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
        "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 7}},
    },
    "get_time": {"type": "object", "properties": {}, "additionalProperties": False},
}
FUNCTIONS = [
    GuidedFunction(name=name, schema_text=json.dumps(schema)) for name, schema in SCHEMAS.items()
]
FORMATS = ["llama3_json", "hermes", "mistral", "mistral_named"]


@pytest.fixture(scope="module")
def rig(tokenizer_file: Path) -> Iterator[Rig]:
    rig = Rig(tokenizer_file)
    yield rig
    rig.compiler.close()


def call_format(name: str, tokenizer: Tokenizer) -> CallFormat:
    formats: dict[str, CallFormat] = {
        "llama3_json": LlamaJSON(tokenizer),
        "hermes": Hermes(tokenizer),
        "mistral": Mistral(tokenizer, has_named_calls=False),
        "mistral_named": Mistral(tokenizer, has_named_calls=True),
    }
    return formats[name]


def forced(call_format: CallFormat, *, is_one: bool = False) -> str:
    return "start: calls\n" + call_format.forced_rules(FUNCTIONS, is_one=is_one)


def free(call_format: CallFormat, *, is_one: bool = False) -> str:
    return "start: message\n" + call_format.free_rules(FUNCTIONS, is_one=is_one)


def is_valid(name: str, arguments: str) -> bool:
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    return True


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_one", [True, False])
def test_forced_outputs_are_calls_whose_arguments_match_the_schemas(
    rig: Rig, name: str, is_one: bool
) -> None:
    chosen = call_format(name, rig.tokenizer)
    most = 0
    for text in rig.texts(GrammarKind.LARK, forced(chosen, is_one=is_one), count=12):
        parsed = parse(list(text), chosen)
        assert parsed.content == ""
        assert parsed.calls
        assert all(is_valid(*call) for call in parsed.calls)
        most = max(most, len(parsed.calls))
    assert (most == 1) == is_one


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text",
    ["Hello, world!", "{", '{"name": "Bob"}', "a <tool", '{"a": [1]}\n', "日本語 🙂", "f(x) < y"],
)
def test_any_plain_text_stays_possible_when_calls_are_free(rig: Rig, name: str, text: str) -> None:
    chosen = call_format(name, rig.tokenizer)
    for is_one in (False, True):
        assert rig.takes(GrammarKind.LARK, free(chosen, is_one=is_one), text)
        assert rig.takes(GrammarKind.LARK, free(chosen, is_one=is_one), "")


OSLO = '{"city": "Oslo", "unit": "celsius"}'
WRONG = '{"town": "Oslo"}'
JSON_CALL = '{"name": "get_weather", "parameters": %s}'
TAGGED = '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>'
ARRAY = '[TOOL_CALLS][{"name": "get_weather", "arguments": %s}]'
NAMED = "[TOOL_CALLS]get_weather[ARGS]%s"
SPELLINGS = [
    ("llama3_json", JSON_CALL),
    ("llama3_json", "Well, " + JSON_CALL),
    ("llama3_json", "<|python_tag|>" + JSON_CALL),
    ("llama3_json", JSON_CALL + '; {"name":"get_time","arguments": {}}'),
    ("hermes", TAGGED),
    ("hermes", "Well.\n" + TAGGED + "\n" + TAGGED.replace("%s", OSLO)),
    ("mistral", ARRAY),
    ("mistral", "Well. " + ARRAY.replace("[{", ' [ {"name": "get_time", "arguments": {}}, {')),
    ("mistral_named", NAMED),
    ("mistral_named", "Well." + NAMED + "[TOOL_CALLS]get_time[ARGS]{}"),
]


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_a_free_call_is_possible_only_with_arguments_that_match(
    rig: Rig, name: str, spelling: str
) -> None:
    chosen = call_format(name, rig.tokenizer)
    assert parse([spelling % OSLO], chosen).calls[0][0] in SCHEMAS
    assert rig.takes(GrammarKind.LARK, free(chosen), spelling % OSLO)
    assert not rig.takes(GrammarKind.LARK, free(chosen), spelling % WRONG)


@pytest.mark.parametrize("name", FORMATS)
def test_one_free_call_ends_the_output(rig: Rig, name: str) -> None:
    chosen = call_format(name, rig.tokenizer)
    spelling = next(text for format_name, text in SPELLINGS if format_name == name)
    grammar = free(chosen, is_one=True)
    assert rig.takes(GrammarKind.LARK, grammar, spelling % OSLO)
    assert not rig.takes(GrammarKind.LARK, grammar, f"{spelling % OSLO}; {spelling % OSLO}")
    assert not rig.takes(GrammarKind.LARK, grammar, f"{spelling % OSLO} and more")


def maybe_after_thoughts(call_format: CallFormat, tokenizer: Tokenizer) -> str:
    thoughts = Thinking(is_open=False)
    excluded = thoughts.beginning(tokenizer)
    rules = call_format.free_rules(FUNCTIONS, is_one=False, excluded=excluded)
    start = "start: thinking? (message) | unfinished_thoughts?\n"
    return start + rules + thoughts.rules(tokenizer)


@pytest.fixture(scope="module")
def thinking_rigs(
    rig: Rig, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Rig]]:
    """The tags of thoughts as text, and as special tokens."""
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    backend.add_special_tokens(["<think>", "</think>"])
    path = tmp_path_factory.mktemp("special") / "tokenizer.json"
    backend.save(str(path))
    special = Rig(path)
    yield [rig, special]
    special.compiler.close()


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_calls_are_guided_after_thoughts_and_without_them_but_not_within(
    thinking_rigs: list[Rig], name: str, spelling: str
) -> None:
    call, broken = spelling % OSLO, spelling % WRONG
    for rig in thinking_rigs:
        grammar = maybe_after_thoughts(call_format(name, rig.tokenizer), rig.tokenizer)
        for text in (call, f"<think>Hm</think>\n\n{call}", f"<think></think>{call}"):
            assert rig.takes(GrammarKind.LARK, grammar, text)
            assert not rig.takes(GrammarKind.LARK, grammar, text.replace(call, broken))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text",
    ["", "Hello", "<thin", "<thinking> hard", "<think>", "<think>Hm", "<think>Hm</think>\n\nHi"],
)
def test_a_model_that_may_think_may_also_say_anything(
    thinking_rigs: list[Rig], name: str, text: str
) -> None:
    for rig in thinking_rigs:
        grammar = maybe_after_thoughts(call_format(name, rig.tokenizer), rig.tokenizer)
        assert rig.takes(GrammarKind.LARK, grammar, text)


def test_a_broken_call_may_be_thought_of(rig: Rig) -> None:
    broken, call = TAGGED % WRONG, TAGGED % OSLO
    grammar = maybe_after_thoughts(call_format("hermes", rig.tokenizer), rig.tokenizer)
    assert rig.takes(GrammarKind.LARK, grammar, f"\n<think>Hm {broken}")
    assert rig.takes(GrammarKind.LARK, grammar, f"<think>Hm {broken}?</think>\n\n{call}")
    assert not rig.takes(GrammarKind.LARK, grammar, f"<think>Hm</think>Well. <think>{broken}")


@pytest.mark.parametrize("is_open", [True, False])
def test_thoughts_come_before_a_forced_call(rig: Rig, is_open: bool) -> None:
    chosen = call_format("hermes", rig.tokenizer)
    thoughts = Thinking(is_open=is_open)
    start = "thinking calls" if is_open else "thinking? calls"
    grammar = f"start: {start}\n{chosen.forced_rules(FUNCTIONS, is_one=True)}"
    grammar += thoughts.rules(rig.tokenizer)
    call = TAGGED % OSLO
    opening = "" if is_open else "<think>\n"
    assert rig.takes(GrammarKind.LARK, grammar, f"{opening}Hm {call}?\n</think>\n\n{call}")
    assert rig.takes(GrammarKind.LARK, grammar, call) != is_open
    assert not rig.takes(GrammarKind.LARK, grammar, f"{opening}Hm</think>\n\nNo.")
