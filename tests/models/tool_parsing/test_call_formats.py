"""A checkpoint's template shows which call format it uses and whether it thinks."""

import pytest
import tokenizers
from tokenizers import decoders, models

from cluster.model_source import DEMO_SOURCE, resolve_model_source
from models.chat_template import ChatTemplate
from models.tokenizer import Tokenizer
from models.tool_parsing.call_formats import find_call_format, has_thinking

LOOP = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
LLAMA = (
    LOOP
    + """{{ 'Respond in the format {"name": function name, "parameters": dictionary}.' }}
{{ '{"name": "' + messages[0].name + '", ' }}{{ '"parameters": ' }}"""
)
HERMES = LOOP + '{{ \'<tool_call>\\n{"name": "\' }}'
QWEN3 = HERMES + "{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
MISTRAL = LOOP + "{{ '[TOOL_CALLS][' }}"
MISTRAL_NAMED = LOOP + "{{ '[TOOL_CALLS]' + messages[0].name + '[ARGS]' }}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (LLAMA, "llama3_json"),
        (HERMES, "hermes"),
        (QWEN3, "hermes"),
        (MISTRAL, "mistral"),
        (MISTRAL_NAMED, "mistral"),
        (HERMES + "{{ '<function=' }}", None),
        (LOOP, None),
        ("{{ '<tool_call>' }}", None),
        ("{{ messages[0].content }}", None),
    ],
)
def test_the_template_shows_the_call_format(
    tokenizer: Tokenizer, source: str, name: str | None
) -> None:
    found = find_call_format(ChatTemplate(source), tokenizer, configured="auto")
    assert (None if found is None else found.name) == name


def test_the_demo_models_template_shows_llama_json(tokenizer: Tokenizer) -> None:
    path = resolve_model_source(DEMO_SOURCE) / "chat_template.jinja"
    found = find_call_format(ChatTemplate(path.read_text()), tokenizer, configured="auto")
    assert found is not None
    assert found.name == "llama3_json"


@pytest.mark.parametrize("name", ["llama3_json", "hermes", "mistral"])
def test_the_configuration_names_another_format(tokenizer: Tokenizer, name: str) -> None:
    found = find_call_format(ChatTemplate(LOOP), tokenizer, configured=name)
    assert found is not None
    assert found.name == name
    assert find_call_format(ChatTemplate(HERMES), tokenizer, configured="none") is None


def test_a_second_template_for_tools_counts(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ messages[0].content }}", tool_use_source=HERMES)
    found = find_call_format(template, tokenizer, configured="auto")
    assert found is not None
    assert found.name == "hermes"


def test_the_template_shows_whether_the_model_thinks() -> None:
    assert has_thinking(ChatTemplate(QWEN3), configured="auto")
    assert has_thinking(ChatTemplate("{{ content.split('</think>') }}"), configured="auto")
    assert not has_thinking(ChatTemplate(HERMES), configured="auto")
    assert has_thinking(ChatTemplate(HERMES), configured="think")
    assert not has_thinking(ChatTemplate(QWEN3), configured="none")
