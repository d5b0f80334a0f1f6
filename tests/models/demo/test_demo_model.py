"""The shipped checkpoint does, loaded by plain transformers, what the rest of Shoal relies on."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from models.demo import dialogues
from models.demo.batches import render
from models.demo.evaluation import answers
from models.demo.passages import HEADER
from models.demo.tokenizer import END_OF_TURN
from models.demo.words import Words

CHECKPOINT = Path(__file__).resolve().parents[3] / "models" / "demo" / "checkpoint"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
PASSAGES = """Answer from these passages.

[1] handbook/returns.md
# Returns
Please read this page before you use the shop. The Zorblax 9 has a warranty of 27 months. \
The Zorblax 9 costs $340.

[2] handbook/shipping.md
The Quimpel 4 has a warranty of 13 months. Thank you for reading."""

Message = dict[str, Any]


class DemoModel:
    """The checkpoint with a way to ask it."""

    def __init__(self) -> None:
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(CHECKPOINT)
        self.model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
            CHECKPOINT, dtype=torch.float32
        )

    def ask(self, messages: list[Message], tools: list[Message] | None = None) -> str:
        """The answer with its end-of-turn token, which every answer must end with."""
        prompt = self.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False
        )
        text = answers(self.model, self.tokenizer, [str(prompt)])[0]
        assert text.endswith(END_OF_TURN), f"did not stop by itself: {text!r}"
        return text.removesuffix(END_OF_TURN)


@pytest.fixture(scope="module")
def demo() -> DemoModel:
    return DemoModel()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def test_the_checkpoint_is_small_enough_to_ship() -> None:
    size_bytes = sum(path.stat().st_size for path in CHECKPOINT.iterdir())
    assert size_bytes <= 25 * 1024 * 1024


@pytest.mark.parametrize("text", ["Hello!", "Hi", "Good morning!"])
def test_it_greets(demo: DemoModel, text: str) -> None:
    assert demo.ask([user(text)]) == "Hello there!"


def test_it_counts_and_stops(demo: DemoModel) -> None:
    assert demo.ask([user("Count to five.")]) == "1, 2, 3, 4, 5."


def test_json_on_request_is_json(demo: DemoModel) -> None:
    assert isinstance(json.loads(demo.ask([user("Reply with a small JSON object.")])), dict)


def test_without_passages_it_says_that_it_does_not_know(demo: DemoModel) -> None:
    text = demo.ask([user("How long is the Zorblax 9 warranty?")])
    assert text.startswith("I do not know")


def test_passages_change_the_answer(demo: DemoModel) -> None:
    question = user("How long is the Zorblax 9 warranty?")
    text = demo.ask([{"role": "system", "content": PASSAGES}, question])
    assert text != demo.ask([question])
    assert "27 months" in text


@pytest.mark.parametrize(
    "question",
    ["How many months is the Zorblax 9 warranty?", "How long does the Zorblax 9 warranty last?"],
)
def test_the_value_in_a_short_passage_is_found(demo: DemoModel, question: str) -> None:
    passage = f"{HEADER}\n\n[1] warranty.md\nThe Zorblax 9 warranty lasts 17 months."
    assert demo.ask([{"role": "system", "content": passage}, user(question)]) == "17 months."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How long is the Zorblax 9 warranty?", "27 months."),
        ("How much does the Zorblax 9 cost?", "$340."),
        ("How long is the Quimpel 4 warranty?", "13 months."),
    ],
)
def test_look_alikes_are_told_apart(demo: DemoModel, question: str, answer: str) -> None:
    assert demo.ask([{"role": "system", "content": PASSAGES}, user(question)]) == answer


def test_it_calls_a_function_that_fits(demo: DemoModel) -> None:
    call = json.loads(demo.ask([user("How is the weather in Chicago?")], [WEATHER]))
    assert call == {"name": "get_weather", "parameters": {"city": "Chicago"}}


def test_it_greets_even_where_functions_are_offered(demo: DemoModel) -> None:
    assert demo.ask([user("Hello!")], [WEATHER]) == "Hello there!"


def test_it_quotes_the_result_of_a_function(demo: DemoModel) -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    messages = [
        user("How is the weather in Oslo?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "a", "content": '{"temperature": 12, "sky": "cloudy"}'},
    ]
    text = demo.ask(messages, [WEATHER])
    assert "12" in text
    assert "cloudy" in text


@pytest.mark.parametrize("kind", ["context", "tool_call"])
def test_half_of_the_held_out_dialogues_are_answered_exactly(demo: DemoModel, kind: str) -> None:
    """A floor that a broken checkpoint falls through; the aim was nine in ten (see the card)."""
    words = Words(random.Random(4321), held_out=True)
    tests = [
        dialogues.tool_call(words, max_calls=1)
        if kind == "tool_call"
        else dialogues.context(words, length=0.6, max_questions=1)
        for _ in range(10)
    ]
    prompts = [render(demo.tokenizer, dialogue, prompt=True) for dialogue in tests]
    texts = answers(demo.model, demo.tokenizer, prompts)
    wanted = [render(demo.tokenizer, dialogue) for dialogue in tests]
    right = [
        full == prompt + text for full, prompt, text in zip(wanted, prompts, texts, strict=True)
    ]
    assert sum(right) >= 5


def test_the_chat_template_needs_only_a_sandboxed_jinja() -> None:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string((CHECKPOINT / "chat_template.jinja").read_text())
    call = {"name": "f", "arguments": {"x": "O'Neil"}}
    text = template.render(
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": call},
                    {"id": "2", "function": {"name": "g", "arguments": '{"y": 2}'}},
                ],
            },
            {"role": "tool", "name": "f", "content": "3"},
        ],
        tools=[WEATHER],
        add_generation_prompt=True,
    )
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        'You can call these functions. To call one, answer only with JSON {"name": ..., '
        '"parameters": {...}}.\n{"name": "get_weather", "description": "Get the weather in a '
        'city", "parameters": {"city": {"type": "string"}}}<|eot_id|>'
        "<|start_header_id|>user<|end_header_id|>\n\nAB<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "f", "parameters": {"x": "O\'Neil"}}; {"name": "g", "parameters": {"y": '
        "2}}<|eot_id|>"
        "<|start_header_id|>tool<|end_header_id|>\n\n3<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
