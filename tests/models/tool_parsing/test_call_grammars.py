"""Forced outputs are always valid calls; free ones may say anything but a broken call."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

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
