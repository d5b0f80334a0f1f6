"""CPU time that the ingress spends on a long conversation before the model sees it, by step.

    python -m scripts.bench.ingress                        # 100 messages, the demo model's template
    python -m scripts.bench.ingress --checkpoint FOLDER --messages 400

Decoding, validation (with the translation into a chat request, where the endpoint has one) and
rendering are to stay under 2 ms together for 100 messages. Tokenizing grows with the text, not
with the number of messages; long prompts are tokenized in threads beside the event loop.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from cluster.anthropic_schema.request import MessageRequest
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.response_request import ResponseRequest
from cluster.openai_schema.validation import parse_request
from deployments.ingress.message_translation import chat_of_message
from deployments.ingress.prompts import template_message, template_tools
from deployments.ingress.request_body import decode_json
from deployments.ingress.response_translation import chat_of_response
from models.chat_template import ChatTemplate
from models.tokenizer import Tokenizer
from scripts.bench.report import environment, median, table

DEMO_CHECKPOINT = Path("models/demo/checkpoint")
TEXT = "The ferry to the island leaves at seven, and the last one back at half past nine. " * 2
ARGUMENTS = {"city": "Oslo", "unit": "celsius", "days": 3}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city"],
}
BUDGET_MS = 2.0
PACKAGES = ("pydantic", "orjson", "jinja2", "tokenizers")


def chat_body(num_messages: int) -> dict[str, Any]:
    """Rounds of a question, a call, its result and an answer, after a system message."""
    call = {"name": "get_weather", "arguments": orjson.dumps(ARGUMENTS).decode()}
    calls = [{"id": "call_1", "type": "function", "function": call}]
    a_round = [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": TEXT},
        {"role": "assistant", "content": TEXT},
    ]
    messages = [{"role": "system", "content": TEXT}, *(a_round * (num_messages // 4 + 1))]
    function = {"name": "get_weather", "description": TEXT, "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    return {"messages": messages[:num_messages], "tools": tools, "temperature": 0.5, "stop": "###"}


def response_body(num_messages: int) -> dict[str, Any]:
    chat = chat_body(num_messages)
    items: list[dict[str, Any]] = []
    for message in chat["messages"]:
        if message["role"] == "tool":
            output = {"call_id": message["tool_call_id"], "output": message["content"]}
            items.append({"type": "function_call_output", **output})
        elif "tool_calls" in message:
            function = message["tool_calls"][0]["function"]
            items.append({"type": "function_call", "call_id": "call_1", **function})
        else:
            items.append({"type": "message", **message})
    tool = {"type": "function", **chat["tools"][0]["function"]}
    return {"input": items, "tools": [tool], "temperature": 0.5}


def message_body(num_messages: int) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    for message in chat_body(num_messages)["messages"]:
        if message["role"] == "tool":
            block = {"type": "tool_result", "tool_use_id": "call_1", "content": message["content"]}
            turns.append({"role": "user", "content": [block]})
        elif "tool_calls" in message:
            use = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": ARGUMENTS}
            turns.append({"role": "assistant", "content": [use]})
        else:
            turns.append(message)
    tools = [{"name": "get_weather", "description": TEXT, "input_schema": SCHEMA}]
    end = {"role": "user", "content": TEXT}
    return {"messages": [*turns[:-1], end], "tools": tools, "max_tokens": 100}


def cpu_ms(work: Callable[[], object], repeat: int) -> float:
    """The median CPU time of this process, in milliseconds."""
    work()
    times = []
    for _ in range(repeat):
        start_s = time.process_time()
        work()
        times.append((time.process_time() - start_s) * 1e3)
    return median(times)


def checked_chat(body: object) -> ChatCompletionRequest:
    return parse_request(ChatCompletionRequest, body)


def checked_response(body: object) -> ChatCompletionRequest:
    return chat_of_response(parse_request(ResponseRequest, body))[0]


def checked_message(body: object) -> ChatCompletionRequest:
    return chat_of_message(parse_request(MessageRequest, body))[0]


ENDPOINTS: dict[
    str, tuple[Callable[[int], dict[str, Any]], Callable[[object], ChatCompletionRequest]]
] = {
    "/chat/completions": (chat_body, checked_chat),
    "/responses": (response_body, checked_response),
    "/messages": (message_body, checked_message),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=200)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_folder(options.checkpoint)
    template = ChatTemplate.from_folder(options.checkpoint, tokenizer)
    rows = []
    for name, (make_body, check) in ENDPOINTS.items():
        body = orjson.dumps(make_body(options.messages))
        rows.append([name, *steps(body, check, template, tokenizer, options.repeat)])
    print(environment(PACKAGES))
    print(f"\n{options.messages} messages, median CPU ms of {options.repeat} runs\n")
    header = ("endpoint", "bytes", "decode", "validate", "render", "sum", "tokenize", "tokens")
    print(table(header, rows))
    print(f"\nbudget for decode + validate + render at 100 messages: {BUDGET_MS:g} ms")


def steps(
    body: bytes,
    check: Callable[[object], ChatCompletionRequest],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    repeat: int,
) -> list[str]:
    """The row of one endpoint."""
    value = decode_json(body)
    request = check(value)

    def render() -> str:
        messages = [template_message(m, at) for at, m in enumerate(request.messages)]
        return template.render(messages, tools=template_tools(request.tools or []) or None)

    text = render()
    times = [
        cpu_ms(lambda: decode_json(body), repeat),
        cpu_ms(lambda: check(value), repeat),
        cpu_ms(render, repeat),
    ]
    tokenize = cpu_ms(lambda: tokenizer.encode(text, add_special_tokens=False), repeat // 10)
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    figures = [f"{value:.2f}" for value in (*times, sum(times), tokenize)]
    return [str(len(body)), *figures, str(num_tokens)]


if __name__ == "__main__":
    main()
