"""Reasoning models as clients see them: thoughts beside content, before calls."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.types import FinishReason
from tests.deployments.ingress.scripted_server import Server, stream
from tests.deployments.ingress.test_function_calling import (
    CHAT,
    OSLO,
    USER,
    ask,
    grammar,
    refusal,
    speaking,
)


@pytest.fixture
async def thinker(checkpoint: Path) -> AsyncIterator[Server]:
    async with speaking(checkpoint, "hermes", reasoning_parser="think") as server:
        yield server


async def test_thoughts_are_beside_the_content(thinker: Server) -> None:
    thinker.says("<think>\nHm, é.\n</think>\n\nYes.")
    answer = await ask(thinker, tools=None)
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Yes.", "Hm, é.")
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    *chunks, _ = await stream(thinker, CHAT, messages=USER)
    deltas_ = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(d.get("reasoning_content", "") for d in deltas_) == "Hm, é."
    assert "".join(d.get("content") or "" for d in deltas_) == "Yes."
    kinds = [key for d in deltas_ for key in d if key != "role"][1:]
    assert kinds == sorted(kinds, reverse=True), "thoughts come first"


async def test_thoughts_and_calls_together(thinker: Server) -> None:
    call = f'<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>'
    thinker.says(f"<think>Call {call}?</think>\n\n{call}")
    choice = (await ask(thinker)).choices[0]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert choice.message.reasoning_content == f"Call {call}?"
    assert len(choice.message.tool_calls) == 1
    start = "start: thinking? (message) | unfinished_thoughts?"
    assert grammar(thinker).text.startswith(start)
    await ask(thinker, tool_choice="required")
    assert grammar(thinker).text.startswith("start: thinking? (calls)")


async def test_structured_answers_come_after_the_thoughts(thinker: Server) -> None:
    thinker.says('<think>Hm</think>{"city": "Oslo"}')
    message = (
        (await ask(thinker, tools=None, response_format={"type": "json_object"})).choices[0].message
    )
    assert (message.content, message.reasoning_content) == ('{"city": "Oslo"}', "Hm")
    assert grammar(thinker).text.startswith("start: thinking? (answer)")


async def test_a_prompt_that_ends_within_thoughts_starts_with_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[-1].content }}{% for t in tools or [] %}{% endfor %}<think>\n")
    async with speaking(checkpoint, "hermes", chat_template=str(path)) as server:
        server.says("Hm</think>Yes.")
        message = (await ask(server)).choices[0].message
        assert (message.content, message.reasoning_content) == ("Yes.", "Hm")
        assert grammar(server).text.startswith("start: thinking (message) | unfinished_thoughts?")
        await ask(server, tools=None, extra_body={"guided_choice": ["a"]})
        assert grammar(server).text.startswith("start: thinking (answer)")
        assert await refusal(server, tools=None, extra_body={"guided_regex": "a"}) == [
            "guided_regex"
        ]
        server.says("Only thoughts", finish=FinishReason.LENGTH)
        message = (await ask(server, tools=None)).choices[0].message
        assert (message.content, message.reasoning_content) == (None, "Only thoughts")
