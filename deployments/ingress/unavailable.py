"""Parameters that this server knows but does not serve yet: refused by name, never ignored.

Values that change nothing (`modalities: ["text"]`) pass. As a parameter comes to life, its line
here goes.
"""

from collections.abc import Callable
from typing import Any

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.completions import CompletionRequest
from cluster.openai_schema.generation import GenerationFields
from cluster.openai_schema.values import shown
from models.chat_template import ChatTemplate

KIND = "not_available"

_Refused = Callable[[Any], bool]


def _is_given(value: object) -> bool:
    return value is not None


_CHAT: dict[str, tuple[_Refused, str]] = {
    "modalities": (lambda value: value not in (None, ["text"]), "output other than text"),
    "audio": (_is_given, "audio output"),
    "functions": (_is_given, "the predecessor of tools"),
    "function_call": (_is_given, "the predecessor of tool_choice"),
    "web_search_options": (_is_given, "web search"),
    "prediction": (_is_given, "predicted output"),
    "verbosity": (_is_given, "verbosity control"),
    "moderation": (_is_given, "moderation"),
    "prompt_cache_options": (_is_given, "prompt cache control"),
    # `preferred` is a wish; a cluster of one's own has no regions to promise.
    "mode": (lambda value: value == "strict", "choosing a region"),
}

_COMPLETION: dict[str, tuple[_Refused, str]] = {
    "suffix": (_is_given, "text after the completion"),
}


def refuse_unavailable_chat(request: ChatCompletionRequest, template: ChatTemplate) -> None:
    """
    Raises:
        ValidationError: naming each parameter that would have no effect.
    """
    problems = _problems(request, _CHAT)
    if request.api_key_ref is not None:  # not repeated: it may be a key in the wrong place
        message = "is only for models of external providers; this model is served here"
        problems.append(_problem("api_key_ref", message))
    if request.enable_thinking is False and "enable_thinking" not in template.variables:
        problems.append(_no_such_switch("enable_thinking"))
    if request.reasoning_effort is not None and "reasoning_effort" not in template.variables:
        problems.append(_no_such_switch("reasoning_effort"))
    if problems:
        raise ValidationError(problems)


def refuse_unavailable_completion(request: CompletionRequest) -> None:
    """
    Raises:
        ValidationError: naming each parameter that would have no effect.
    """
    problems = _problems(request, _COMPLETION)
    if problems:
        raise ValidationError(problems)


def _problems(
    request: GenerationFields, table: dict[str, tuple[_Refused, str]]
) -> list[FieldProblem]:
    problems = [
        _problem(name, f"{what} is not available yet; given {shown(_plain(value))}")
        for name, (is_refused, what) in table.items()
        if is_refused(value := getattr(request, name))
    ]
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        message = "padding of stream events is not available yet"
        problems.append(
            FieldProblem(loc=("stream_options", "include_obfuscation"), message=message, kind=KIND)
        )
    return problems


def _no_such_switch(name: str) -> FieldProblem:
    return _problem(name, "this model's chat template has no such switch")


def _problem(name: str, message: str) -> FieldProblem:
    return FieldProblem(loc=(name,), message=message, kind=KIND)


def _plain(value: object) -> object:
    return value.model_dump() if hasattr(value, "model_dump") else value
