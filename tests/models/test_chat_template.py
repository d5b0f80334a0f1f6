"""Templates render as transformers renders them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.chat_template import ChatTemplate, ChatTemplateError, RenderError
from models.tokenizer import Tokenizer

LLAMA = """
{{- bos_token }}
{%- if tools is not none %}
    {{- '<|h|>system<|e|>\\nTools:\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
    {{- '<|eot|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {{- '<|h|>assistant<|e|>' + call.function.name + '(' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name + '=' + value | tojson }}{% if not loop.last %}, {% endif %}
            {%- endfor %}
            {{- ')<|eot|>' }}
        {%- endfor %}
        {%- continue %}
    {%- endif %}
    {{- '<|h|>' + message['role'] + '<|e|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|h|>assistant<|e|>\\n\\n' }}
{%- endif %}
"""

CHATML = """{% set ns = namespace(system=false) %}
{% for message in messages %}
    {% if message.role == 'system' %}{% set ns.system = true %}{% endif %}
    {% if loop.first and not ns.system %}
<|im_start|>system
You are helpful.<|im_end|>
    {% endif %}
    {% if message.content is defined %}
<|im_start|>{{ message.role }}
{{ message.content }}{{ '<|im_end|>' }}
    {% endif %}
    {% generation %}{% set inside = 1 %}{% if message.tool_calls %}{{ message.tool_calls | tojson }}
    {% endif %}{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{% endif %}"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{% elif message['role'] == 'tool' %}{{ {'result': message['content']} | tojson }}
{% else %}{{ raise_exception('Only user, tool and assistant roles are supported!') }}{% endif %}
{% endfor %}"""

TEMPLATES = {"llama": LLAMA, "chatml": CHATML, "mistral": MISTRAL}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für <Stadt> & 'Land'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, special_tokens=SPECIAL_TOKENS)


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function}


PLAIN = [{"role": "user", "content": "  Grüße, <b>Ωmega</b> & 名前 "}]
DIALOGUE = [
    *PLAIN,
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Weather?\n"},
    {"role": "tool", "content": "22 °C", "tool_call_id": "call_1", "name": "weather"},
]


def by_transformers(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    reference = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)
    text: str = reference.apply_chat_template(
        messages, chat_template=template, tokenize=False, **options
    )
    return text


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("messages", [PLAIN, DIALOGUE], ids=["plain", "dialogue"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_rendering_equals_transformers(
    name: str, messages: list[dict[str, Any]], tools: Any, generation_prompt: bool
) -> None:
    ours = ChatTemplate(TEMPLATES[name], special_tokens=SPECIAL_TOKENS).render(
        messages, tools=tools, add_generation_prompt=generation_prompt
    )
    theirs = by_transformers(
        TEMPLATES[name], messages, tools=tools, add_generation_prompt=generation_prompt
    )
    assert ours == theirs


@pytest.mark.parametrize("name", ["llama", "chatml"])
def test_tool_calls_are_rendered_with_parsed_arguments_and_without_null_content(name: str) -> None:
    arguments = {"city": "Köln", "days": [1, 2]}
    sent = [{"role": "assistant", "content": None, "tool_calls": [call(json.dumps(arguments))]}]
    parsed = [{"role": "assistant", "content": None, "tool_calls": [call(arguments)]}]
    ours = ChatTemplate(TEMPLATES[name], special_tokens=SPECIAL_TOKENS).render(sent)
    assert ours == by_transformers(TEMPLATES[name], parsed, add_generation_prompt=True)


@pytest.mark.parametrize("arguments", ["not json", "[1]", '"text"', ""])
def test_arguments_that_are_not_an_object_stay_as_they_are(arguments: str) -> None:
    template = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments }}")
    assert template.render([{"role": "assistant", "tool_calls": [call(arguments)]}]) == arguments


def test_further_variables_reach_the_template_and_are_known_by_name() -> None:
    template = ChatTemplate(CHATML)
    assert "enable_thinking" in template.variables
    assert "<think>" in template.render(PLAIN, variables={"enable_thinking": False})
    assert "<think>" not in template.render(PLAIN)


def test_a_refusing_template_speaks_for_itself() -> None:
    with pytest.raises(RenderError, match="Only user, tool and assistant"):
        ChatTemplate(MISTRAL).render([{"role": "system", "content": "x"}])


def test_what_a_template_cannot_digest_is_the_clients_error() -> None:
    with pytest.raises(RenderError, match="TypeError"):
        ChatTemplate("{{ 1 + messages[0].content }}").render(PLAIN)


def test_templates_run_in_a_sandbox() -> None:
    for source in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(RenderError):
            ChatTemplate(source).render(PLAIN)


@pytest.mark.parametrize(
    "expression",
    [
        "messages[0].__class__",
        "messages[0].content.__class__",
        "messages[0].content.format.__globals__",
        "'{0.__class__}'.format(1)",
        "loop._iterable",
        "loop.__class__",
        "space.__class__",
        "space._Namespace__attrs",
    ],
)
def test_short_ways_lead_around_no_wall(expression: str) -> None:
    source = (
        "{% set space = namespace(x=1) %}{% for _ in [1] %}{{ " + expression + " }}{% endfor %}"
    )
    template = ChatTemplate(source)
    try:
        text = template.render([{"role": "user", "content": "a"}])
    except RenderError as error:
        text = str(error)
    assert text == "" or "unsafe" in text


def test_attributes_of_messages_are_their_keys_unless_a_dictionary_has_them() -> None:
    source = (
        "{{ messages[0].content }}|{{ messages[0].missing }}|{{ messages[0].items() | length }}"
    )
    template = ChatTemplate(source + "|{{ messages[0].missing is defined }}")
    assert template.render([{"role": "user", "content": "a"}]) == "a||2|False"


def test_the_files_of_a_checkpoint_are_tried_in_order(tmp_path: Path) -> None:
    def found() -> str:
        return ChatTemplate.from_folder(tmp_path, tokenizer()).render(PLAIN)

    with pytest.raises(ChatTemplateError, match="no chat template"):
        found()
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert found() == "D"
    with_tools = ChatTemplate.from_folder(tmp_path, tokenizer()).render(PLAIN, tools=TOOLS)
    assert with_tools == "T"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert found() == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert found() == "json"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}jinja")
    assert found() == "<s>jinja"
    (tmp_path / "mine").write_text("mine")
    mine = ChatTemplate.from_folder(tmp_path, tokenizer(), override=tmp_path / "mine")
    assert mine.render(PLAIN) == "mine"


def test_a_broken_template_and_a_missing_override_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ChatTemplateError, match=f"{tmp_path.name}.*line 1"):
        ChatTemplate.from_folder(tmp_path, tokenizer())
    with pytest.raises(ChatTemplateError, match="missing"):
        ChatTemplate.from_folder(tmp_path, tokenizer(), override=tmp_path / "missing")
