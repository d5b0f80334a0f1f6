"""From a checked request to a generation, without HTTP."""

from pathlib import Path

from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.validation import parse_request
from cluster.telemetry import Telemetry
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.exchange import Exchange
from deployments.ingress.grounding import Grounding
from deployments.ingress.prompts import LONG_TEXT_CHARS, PromptBuilder
from deployments.ingress.served_model import ModelDirectory, load_served_model
from tests.deployments.ingress.scripted_server import MODEL, ScriptedPool, configuration, deltas


async def test_many_functions_in_a_long_prompt_are_planned_as_a_few_are(checkpoint: Path) -> None:
    pool = ScriptedPool(lambda request: iter(deltas(request, [])))
    config = configuration().models[0].model_copy(update={"tool_parser": "hermes"})
    model = load_served_model(config, checkpoint, pool, max_model_len=100_000)
    prompts = PromptBuilder()
    generations = ChatGenerations(
        ModelDirectory({MODEL: model}, default_name=MODEL),
        prompts,
        Telemetry(),
        Grounding(None, prompts, configuration().retrieval),
    )
    tools = [
        {"type": "function", "function": {"name": f"f{number}", "parameters": {"type": "object"}}}
        for number in range(120)
    ]
    grammars = []
    for content in ("hi", "hello " * LONG_TEXT_CHARS):
        messages = [{"role": "user", "content": content}]
        request = parse_request(ChatCompletionRequest, {"messages": messages, "tools": tools})
        exchange = Exchange()
        exchange.answer_id = "chatcmpl-1"
        generation = await generations.start(request, model, exchange)
        async for _ in generation.pieces():
            pass
        grammars.append(pool.requests[-1].sampling_params.grammar)
    prompts.close()
    assert grammars[0] is not None
    assert "arguments_119" in grammars[0].text
    assert grammars[0] == grammars[1]
