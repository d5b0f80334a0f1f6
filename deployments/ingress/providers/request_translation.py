"""From a chat request of ours to the body that a provider of OpenAI's API understands.

Every field that a client gives is handed on, translated, or refused by name. Dropped are only
values that change nothing, and descriptions of the caller that the provider has no field for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from cluster.errors import BadRequestError, FieldProblem, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.guides import JSONSchemaFormat
from cluster.openai_schema.messages import AssistantMessage, MediaPart, Message, ToolMessage
from cluster.openai_schema.values import shown
from cluster.provider_config import ProviderConfig
from cluster.types import GrammarKind
from deployments.ingress.unavailable import KIND

Body = dict[str, Any]

#: Looked at by name below, or about which provider it is.
_HANDLED = frozenset(
    (
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("tools", "tool_choice", "api_key_ref", "response_format", "structured_outputs"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    )
)
#: About the caller or the bill.
_DESCRIPTIONS = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "region"),
    )
)
#: Values that ask for nothing.
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1,
    "logprobs": lambda value: not value,
    "top_logprobs": lambda value: not value,
    "logit_bias": lambda value: not value,
    "seed": lambda value: value == -1,
    "presence_penalty": lambda value: not value,
    "frequency_penalty": lambda value: not value,
    "repetition_penalty": lambda value: value == 1,
    "top_k": lambda value: value <= 0,
    "min_p": lambda value: not value,
    "stop": lambda value: not value,
    "stop_token_ids": lambda value: not value,
    "min_tokens": lambda value: not value,
    "ignore_eos": lambda value: not value,
    "use_beam_search": lambda value: not value,
    "length_penalty": lambda value: value == 1,
    "early_stopping": lambda value: not value,
    "enable_thinking": lambda value: value,
    "modalities": lambda value: value == ["text"],
    "mode": lambda value: value == "preferred",
}


def provider_body(
    request: ChatCompletionRequest, config: ProviderConfig, *, model_name: str
) -> Body:
    """The body, for `encoded`.

    Raises:
        ValidationError: naming each field that the provider has nothing like.
        BadRequestError: it is nested too deeply.
    """
    try:
        body, problems = _translated(request, config, model_name)
    except ValueError:  # pydantic's only reason to write no values that it has read
        raise _too_deep() from None
    if problems:
        raise ValidationError(problems)
    return body


def encoded(body: Body) -> bytes:
    """
    Raises:
        BadRequestError: it is nested too deeply.
    """
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # the only reason left
        raise _too_deep() from None


def _too_deep() -> BadRequestError:
    return BadRequestError("The request is nested too deeply to be handed on.")


def _translated(
    request: ChatCompletionRequest, config: ProviderConfig, model_name: str
) -> tuple[Body, list[FieldProblem]]:
    problems: list[FieldProblem] = []
    body: Body = {
        "model": config.own_name(model_name),
        "messages": [_message(message) for message in request.messages],
    }
    if request.token_limit is not None:
        body[config.token_limit_field] = request.token_limit
    _add_tools(body, request)
    problems += _add_plain_fields(body, request, config)
    problems += _add_format(body, request, config)
    problems += _add_stream(body, request, config)
    return body, problems


def add_context(messages: list[Body], text: str) -> None:
    """Put a text at the end of the first system message, or into one of its own at the front."""
    first = next((message for message in messages if message["role"] == "system"), None)
    if first is None:
        messages.insert(0, {"role": "system", "content": text})
    elif isinstance(first["content"], str):
        first["content"] = f"{first['content']}\n\n{text}".lstrip()
    else:
        first["content"].append({"type": "text", "text": text})


def without_media(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """The request with its texts alone: what can be searched for."""
    return request.model_copy(update={"messages": [_text_only(one) for one in request.messages]})


def _text_only(message: Message) -> Message:
    if not isinstance(message.content, list):
        return message
    parts = [part for part in message.content if not isinstance(part, MediaPart)]
    return message.model_copy(update={"content": parts or ""})


def _message(message: Message) -> Body:
    """Without what clients replay from answers and providers refuse."""
    written: Body = message.model_dump(
        mode="json", exclude_none=True, exclude={"reasoning_content", "annotations"}
    )
    if message.role == "developer":
        written["role"] = "system"
    if isinstance(message, ToolMessage):
        written.pop("name", None)
    if isinstance(message, AssistantMessage):
        written.setdefault("content", None)
        for call in written.get("tool_calls", ()):
            call.pop("index", None)
    if isinstance(written["content"], list):
        for part in written["content"]:
            if isinstance(part.get("image_url"), str):  # Telnyx' spelling
                part["image_url"] = {"url": part["image_url"]}
    return written


def _add_tools(body: Body, request: ChatCompletionRequest) -> None:
    functions = [
        tool.model_dump(mode="json", exclude_unset=True)
        for tool in request.tools or ()
        if tool.type == "function"
    ]
    if not functions:
        return
    body["tools"] = functions
    choice = request.tool_choice
    if choice is not None:
        body["tool_choice"] = choice if isinstance(choice, str) else choice.model_dump(mode="json")


def _add_plain_fields(
    body: Body, request: ChatCompletionRequest, config: ProviderConfig
) -> list[FieldProblem]:
    known = config.known_parameters
    problems = []
    given = [name for name in type(request).model_fields if getattr(request, name) is not None]
    for name in given:
        value = getattr(request, name)
        if name in _HANDLED or (name == "seed" and value == -1):
            continue
        if name in known:
            body[name] = _plain(value)
        elif name not in _DESCRIPTIONS and not _is_neutral(name, value, request):
            problems.append(_refusal((name,), config, value))
    return problems


def _is_neutral(name: str, value: object, request: ChatCompletionRequest) -> bool:
    if name == "best_of":
        return value == request.num_choices and not request.use_beam_search
    return name in _NEUTRAL and _NEUTRAL[name](value)


def _add_format(
    body: Body, request: ChatCompletionRequest, config: ProviderConfig
) -> list[FieldProblem]:
    """Guides, in OpenAI's words where it has words for them."""
    guide, known = request.guide, config.known_parameters
    if guide is None:
        return []  # `{"type": "text"}` is what there is without it
    name = guide.loc[0]
    if name in known and name.startswith("guided_"):
        value = getattr(request, name)
        body[name] = orjson.Fragment(value) if name == "guided_json" else value
        return []
    if "response_format" not in known:
        return [_refusal(guide.loc, config)]
    if guide.spec.kind is GrammarKind.JSON_OBJECT:
        body["response_format"] = {"type": "json_object"}
    elif guide.spec.kind is GrammarKind.JSON_SCHEMA:
        schema = _schema(request, guide.spec.text)
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        return [_refusal(guide.loc, config)]
    return []


def _schema(request: ChatCompletionRequest, text: str) -> Body:
    """The client's own `json_schema`; or one for a guide, `strict`, since guides must be kept."""
    schema = orjson.Fragment(text)
    if not isinstance(request.response_format, JSONSchemaFormat):
        return {"name": "answer", "strict": True, "schema": schema}
    own = request.response_format.json_schema
    written = own.model_dump(mode="json", exclude_none=True, exclude={"json_schema"})
    return {**written, "schema": schema}


def _add_stream(
    body: Body, request: ChatCompletionRequest, config: ProviderConfig
) -> list[FieldProblem]:
    if not request.stream:
        return []
    body["stream"] = True
    if "stream_options" in config.known_parameters:
        body["stream_options"] = {"include_usage": True}  # we count; not all of it goes on
    elif request.wants_usage_chunk:
        return [_refusal(("stream_options", "include_usage"), config)]
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        return [_refusal(("stream_options", "include_obfuscation"), config)]
    return []


def _plain(value: object) -> object:
    if isinstance(value, dict):  # JSON's keys are strings, and OpenAI's biases integers
        return {str(key): _whole(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refusal(loc: Sequence[str], config: ProviderConfig, given: object = None) -> FieldProblem:
    message = f"cannot be handed on to {config.name}, which has no such parameter"
    if given is not None:
        message += f"; given {shown(given)}"
    return FieldProblem(loc=tuple(loc), message=message, kind=KIND)
