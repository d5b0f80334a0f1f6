"""Real-looking and hostile outputs become the right parts, wherever they are cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tokenizer import Tokenizer
from models.tool_parsing.call_format import CallFormat
from models.tool_parsing.hermes import Hermes
from models.tool_parsing.llama_json import LlamaJSON
from models.tool_parsing.mistral import Mistral
from models.tool_parsing.output_parser import CallRules, OutputParser, OutputRules
from models.tool_parsing.text_feed import MAX_HELD_SEPARATORS
from models.tool_parsing.thinking import Thinking
from tests.models.tool_parsing.parsed import NAMES, Parsed, cut, parse

FORMATS = ["llama3_json", "hermes", "mistral"]
OSLO = '{"city": "Oslo"}'
NESTED = '{"a": {"b": [{"c": "} ] \\" {"}]}, "d": "\\\\"}'


@pytest.fixture
def formats(tokenizer: Tokenizer) -> dict[str, CallFormat]:
    found: list[CallFormat] = [
        LlamaJSON(tokenizer),
        Hermes(tokenizer),
        Mistral(tokenizer, has_named_calls=False),
    ]
    return {item.name: item for item in found}


WEATHER = ("get_weather", OSLO)

# Format, output, content (None: all of it), calls.
OUTPUTS: list[tuple[str, str, str | None, list[tuple[str, str]]]] = [
    # Llama 3.x and the demo model.
    ("llama3_json", f'{{"name": "get_weather", "parameters": {OSLO}}}', "", [WEATHER]),
    ("llama3_json", f'{{"name":"get_weather","arguments":{OSLO}}}', "", [WEATHER]),
    ("llama3_json", f'\n\n {{ "name" : "get_weather" , "parameters" : {OSLO} }}\n', "", [WEATHER]),
    (
        "llama3_json",
        f'{{"name": "get_weather", "parameters": {OSLO}}}; {{"name": "f", "parameters": {{}}}}',
        "",
        [WEATHER, ("f", "{}")],
    ),
    (
        "llama3_json",
        f'{{"name": "get_weather", "parameters": {OSLO}}}\n{{"name": "f", "parameters": {{}}}}\n',
        "",
        [WEATHER, ("f", "{}")],
    ),
    (
        "llama3_json",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {OSLO}}}; '
        '{"name": "f", "parameters": {}}',
        "",
        [WEATHER, ("f", "{}")],
    ),
    (
        "llama3_json",
        f'{{"type": "function", "name": "get_weather", "parameters": {OSLO}}}',
        "",
        [WEATHER],
    ),
    ("llama3_json", f'{{"parameters": {OSLO}, "name": "get_weather"}}', "", [WEATHER]),
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": "{\\"city\\": \\"Oslo\\"}"}',
        "",
        [WEATHER],
    ),
    ("llama3_json", '{"name": "get_time"}', "", [("get_time", "{}")]),
    ("llama3_json", '{"name": "get_time", "parameters": null}', "", [("get_time", "{}")]),
    ("llama3_json", f'{{"name": "f", "parameters": {NESTED}}}', "", [("f", NESTED)]),
    ("llama3_json", '{"n\\u0061me": "\\u0066", "parameters": {}}', "", [("f", "{}")]),
    (
        "llama3_json",
        'Sure; {"name": "f", "parameters": {"x": 1}} Done.',
        "Sure Done.",
        [("f", '{"x": 1}')],
    ),
    ("llama3_json", '{"name": "f", "parameters": {"x": "\\u00', "", [("f", '{"x": "\\u00')]),
    ("llama3_json", '{"name": "f", "parameters": {}, "id": "7"} x', " x", [("f", "{}")]),
    # What only looks like a call.
    ("llama3_json", "", "", []),
    ("llama3_json", "  \n", "  \n", []),
    ("llama3_json", "a {b} c;", "a {b} c;", []),
    ("llama3_json", '{"name": "Bob", "parameters": {}}', None, []),
    ("llama3_json", '{"name": "f", "parameters": [1]}', None, []),
    ("llama3_json", '{"name": "f", "parameters": "no object"}', None, []),
    ("llama3_json", '{"name": "f", "parame', None, []),
    ("llama3_json", '{"name": 5, "parameters": {}}', None, []),
    ("llama3_json", '{"answer": {"name": "f", "para": 1}}', None, []),
    ("llama3_json", '{"parameters": {"x": ', None, []),
    ("llama3_json", '{"parameters": {"x": nonsense}, "name": "f"}', None, []),
    ("llama3_json", f'{{"name": "{"f" * 600}", "parameters": {{}}}}', None, []),
    ("llama3_json", '<|python_tag|>print("hi")', None, []),
    ("llama3_json", "<|pyth", None, []),
    ("llama3_json", '```json\n{"a": 1}\n```', None, []),
    # Hermes and Qwen.
    (
        "hermes",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>',
        "",
        [WEATHER],
    ),
    (
        "hermes",
        f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        "Let me look.",
        [WEATHER, ("f", "{}")],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {}}\n{"name": "f", "arguments": {"x": 1}}'
        "</tool_call>",
        "",
        [("f", "{}"), ("f", '{"x": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": [', "", [("f", '{"x": [')]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>!',
        "!",
        [("f", '{"x": "</tool_call>"}')],
    ),
    (
        "hermes",
        '<tool_call>hm <tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "<tool_call>hm",
        [("f", "{}")],
    ),
    ("hermes", "<tool_call>\n</tool_call> that is how", None, []),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, []),
    ("hermes", f'{{"name": "f", "arguments": {OSLO}}}', None, []),
    ("hermes", "a < b, <tool, <tool_cal", None, []),
    # Mistral, both spellings.
    (
        "mistral",
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {OSLO}}}]',
        "",
        [WEATHER],
    ),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {OSLO}, "id": "123456789"}}, '
        '{"name": "f", "arguments": {}}]',
        "",
        [WEATHER, ("f", "{}")],
    ),
    ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{OSLO}", "", [WEATHER]),
    (
        "mistral",
        f"I look. [TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{OSLO}[TOOL_CALLS]f[ARGS]{{}}",
        "I look.",
        [WEATHER, ("f", "{}")],
    ),
    ("mistral", f"[TOOL_CALLS]get_weather{OSLO}", "", [WEATHER]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"x": [1', "", [("f", '{"x": [1')]),
    ("mistral", "[TOOL_CALLS]nothing[ARGS]{}", None, []),
    ("mistral", "[TOOL_CALLS]f and more", None, []),
    ("mistral", "[TOOL_CALLS][]", None, []),
    ("mistral", "[TOOL_CALLS][{}]", None, []),
    ("mistral", "array[TOOL", None, []),
]
IDS = [f"{name}:{text[:60]}" for name, text, _, _ in OUTPUTS]


@pytest.mark.parametrize(("name", "text", "content", "calls"), OUTPUTS, ids=IDS)
def test_an_output_becomes_content_and_calls_wherever_it_is_cut(
    formats: dict[str, CallFormat],
    name: str,
    text: str,
    content: str | None,
    calls: list[tuple[str, str]],
) -> None:
    expected = Parsed(text if content is None else content, "", calls)
    assert parse([text], formats[name]) == expected
    assert parse(list(text), formats[name]) == expected
    for place in range(len(text)):
        assert parse([text[:place], text[place:]], formats[name]) == expected


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>"),
    *(
        '{"name": "f", "parameters": ',
        '{"name": "f", "arguments": ',
        '{"parameters": {',
        "</think>",
    ),
    *('"name": "f"', "get_time", "{", "}", "[", "]", '"', "\\", ",", ":", ";", " ", "\n", "null"),
    *("\\u00e9", "é", "{}", '{"x": "}"}', "text ", "</think>"),
]


@settings(max_examples=400)
@given(
    name=st.sampled_from(FORMATS),
    fragments=st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=14),
    places=st.lists(st.integers(0, 400), max_size=12),
    has_thoughts=st.booleans(),
)
def test_where_a_text_is_cut_changes_nothing(
    tokenizer: Tokenizer, name: str, fragments: list[str], places: list[int], has_thoughts: bool
) -> None:
    formats: dict[str, CallFormat] = {
        "llama3_json": LlamaJSON(tokenizer),
        "hermes": Hermes(tokenizer),
        "mistral": Mistral(tokenizer, has_named_calls=True),
    }
    call_format = formats[name]
    text = "".join(fragments)
    thinking = Thinking(is_open=False) if has_thoughts else None
    whole = parse([text], call_format, thinking=thinking)
    assert parse(cut(text, places), call_format, thinking=thinking) == whole
    assert parse(list(text), call_format, thinking=thinking) == whole
    if not whole.calls and thinking is None:
        assert whole.content == text, "what is no call is content, to the last character"


@settings(max_examples=100)
@given(
    arguments=st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=12)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=4,
    ),
    is_ascii=st.booleans(),
    places=st.lists(st.integers(0, 400), max_size=12),
)
def test_arguments_come_out_as_the_model_wrote_them(
    tokenizer: Tokenizer, arguments: dict[str, object], is_ascii: bool, places: list[int]
) -> None:
    written = json.dumps(arguments, ensure_ascii=is_ascii)
    text = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    assert parse(cut(text, places), Hermes(tokenizer)) == ("", "", [("f", written)])


def test_text_is_held_back_only_while_it_may_be_a_call(formats: dict[str, CallFormat]) -> None:
    calls = CallRules(call_format=formats["llama3_json"], names=NAMES)
    parser = OutputParser(OutputRules(calls=calls))
    assert parser.push("Hello ").content == "Hello"
    assert parser.push("there {").content == " there"
    assert parser.push('"na').content == ""
    assert parser.push("ive").content == ""
    assert parser.push('": 1').content == ' {"naive": 1'


def test_a_call_begins_as_soon_as_its_arguments_do(formats: dict[str, CallFormat]) -> None:
    calls = CallRules(call_format=formats["llama3_json"], names=NAMES)
    parser = OutputParser(OutputRules(calls=calls))
    assert parser.push('{"name": "f", "parameters": ').calls == ()
    first, *rest = parser.push('{"x').calls
    assert (first.name, first.arguments, first.call_index) == ("f", "", 0)
    assert [delta.arguments for delta in rest] == ['{"x']
    assert [delta.arguments for delta in parser.push('": 1}').calls] == ['": 1}']


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama3_json", '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>x'),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f"}]'),
        ("mistral", "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}"),
    ],
)
def test_with_one_call_allowed_the_output_is_full_after_it(
    formats: dict[str, CallFormat], name: str, text: str
) -> None:
    calls = CallRules(call_format=formats[name], names=NAMES, max_calls=1)
    parser = OutputParser(OutputRules(calls=calls))
    full_after = next(at for at, char in enumerate(text) if parser.push(char) and parser.is_full)
    assert text[: full_after + 1].endswith("{}")
    assert parse([text], formats[name], max_calls=1) == ("", "", [("f", "{}")])


def test_a_forced_call_that_is_cut_off_is_no_content(formats: dict[str, CallFormat]) -> None:
    calls = CallRules(call_format=formats["llama3_json"], names=NAMES, has_content=False)
    parser = OutputParser(OutputRules(calls=calls))
    assert parser.push('{"name": "f", "parameters": {}}; {"na').content == ""
    assert parser.finish() == ("", "", ())


def test_endless_white_space_is_not_hoarded(formats: dict[str, CallFormat]) -> None:
    calls = CallRules(call_format=formats["llama3_json"], names=NAMES)
    parser = OutputParser(OutputRules(calls=calls))
    num_shown = sum(len(parser.push(" ").content) for _ in range(1000))
    assert num_shown == 1000 - MAX_HELD_SEPARATORS
    text = " " * 1000 + '{"name": "f", "parameters": {}}'
    assert parse([text], formats["llama3_json"]) == parse(list(text), formats["llama3_json"])


def test_ids_of_calls_are_what_the_templates_accept(formats: dict[str, CallFormat]) -> None:
    ids = {formats["mistral"].new_call_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(len(item) == 9 and item.isalnum() for item in ids)
    assert formats["hermes"].new_call_id().startswith("call_")


# Text, whether the prompt opened the thoughts, reasoning, content.
THOUGHTS: list[tuple[str, bool, str, str]] = [
    ("<think>\nHm, well.\n</think>\n\nYes.", False, "Hm, well.", "Yes."),
    ("\n<think>Hm</think>Yes", False, "Hm", "Yes"),
    ("<think>\n\n</think>\n\nYes", False, "", "Yes"),
    ("Hm, well.\n</think>\n\nYes.", True, "Hm, well.", "Yes."),
    ("Yes.", False, "", "Yes."),
    (" <thin", False, "", " <thin"),
    ("Yes <think>no</think>", False, "", "Yes <think>no</think>"),
    ("<think>Hm </thi", False, "Hm </thi", ""),
    ("Hm", True, "Hm", ""),
    ("<think>a</think>b</think>c", False, "a", "b</think>c"),
]


@pytest.mark.parametrize(("text", "is_open", "reasoning", "content"), THOUGHTS)
def test_thoughts_are_split_from_the_answer_wherever_the_text_is_cut(
    text: str, is_open: bool, reasoning: str, content: str
) -> None:
    thinking = Thinking(is_open=is_open)
    for pieces in ([text], list(text), [text[:5], text[5:]]):
        assert parse(pieces, None, thinking=thinking) == (content, reasoning, [])


def test_a_call_that_is_only_thought_of_is_not_made(formats: dict[str, CallFormat]) -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    text = f"<think>{call}?</think>\n{call}"
    parsed = parse(list(text), formats["hermes"], thinking=Thinking(is_open=False))
    assert parsed == ("", f"{call}?", [("f", "{}")])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|im_start|>assistant\n", Thinking(is_open=False)),
        ("<|im_start|>assistant\n<think>\n", Thinking(is_open=True)),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None),
    ],
)
def test_the_prompt_says_whether_the_model_is_thinking(
    prompt: str, expected: Thinking | None
) -> None:
    assert Thinking.after(prompt) == expected
