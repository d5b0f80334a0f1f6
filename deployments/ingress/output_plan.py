"""What a chat answer consists of beside plain text, and the grammar that keeps it so.

| the request asks for            | grammar                                                        |
|---------------------------------|----------------------------------------------------------------|
| `required`, or one function     | calls only, arguments as the functions' schemas say            |
| `auto`                          | any text, in which a call that is begun becomes a valid one    |
| `auto` and structured output    | calls only, or the structured answer                           |
| structured output               | the client's own                                               |

In front of all of them a reasoning model may think, of calls too; it must where the prompt has it
begin. `auto` goes without a grammar where one could get in the way of an ordinary answer: with
`ignore_eos` or `min_tokens`, and where the schemas are very long. A schema that cannot be enforced
is refused by name when the call is forced or the function `strict`; otherwise its function's
arguments are any object.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.guides import Guide
from cluster.openai_schema.tools import (
    AllowedToolsChoice,
    FunctionDefinition,
    FunctionTool,
    NamedToolChoice,
)
from cluster.types import GrammarKind, GrammarSpec
from deployments.ingress.prompts import TokenizedPrompt
from deployments.ingress.served_model import ServedModel
from models.grammar.errors import GrammarError
from models.grammar.json_schema_check import check_schema
from models.tool_parsing import lark, thinking
from models.tool_parsing.call_format import CallFormat, GuidedFunction
from models.tool_parsing.llama_json import LlamaJSON
from models.tool_parsing.output_parser import CallRules, OutputRules
from models.tool_parsing.thinking import Thinking

MAX_FREE_SCHEMA_CHARS = 64 * 1024  # of all functions together, to guide what is not forced
MAX_SCHEMA_CHARS = 256 * 1024  # of one function, to be enforced
_NUM_REMEMBERED = 1024
_MAX_REMEMBERED_CHARS = 16 * 1024
_ANY_OBJECT = '{"type": "object"}'
_NO_ARGUMENTS = '{"type": "object", "properties": {}, "additionalProperties": false}'

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlan:
    """How to generate and read the outputs of one request."""

    rules: OutputRules | None = None  # None: all text is content
    shown_special_ids: frozenset[int] = frozenset()
    grammar: GrammarSpec | None = None
    grammar_loc: tuple[str, ...] | None = None  # the field to name when a replica refuses it


class SchemaCheck:
    """Whether functions' schemas can be enforced. Clients send the same ones again and again."""

    def __init__(self) -> None:
        self._remembered_complaint = functools.lru_cache(maxsize=_NUM_REMEMBERED)(_complaint)

    def complaint(self, schema_text: str) -> str | None:
        """What stands in the way; None if nothing does."""
        if len(schema_text) > MAX_SCHEMA_CHARS:
            return f"must have at most {MAX_SCHEMA_CHARS} characters; given {len(schema_text)}"
        if len(schema_text) > _MAX_REMEMBERED_CHARS:
            return _complaint(schema_text)
        return self._remembered_complaint(schema_text)


def _complaint(schema_text: str) -> str | None:
    try:
        # What the back end has against a pattern is found out in the replica, under its limits.
        check_schema(schema_text, check_pattern=lambda _: None)
    except GrammarError as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """The calls that a request allows."""

    call_format: CallFormat
    functions: Sequence[GuidedFunction]
    is_forced: bool
    is_one: bool
    is_exact: bool  # a function is `strict`


def plan_output(
    request: ChatCompletionRequest,
    model: ServedModel,
    prompt: TokenizedPrompt,
    check: SchemaCheck,
) -> OutputPlan:
    """
    Raises:
        ValidationError: the model cannot call functions, a schema cannot be enforced, or fields
            contradict each other.
    """
    assert prompt.text is not None, "chat prompts are rendered"
    thoughts = Thinking.after(prompt.text) if model.has_thinking else None
    calls = _calls(request, model, check)
    if calls is None and thoughts is None:
        guide = request.guide
        return OutputPlan(
            grammar=None if guide is None else guide.spec,
            grammar_loc=None if guide is None else guide.loc,
        )
    markers = () if calls is None else calls.call_format.marker_tokens
    if thoughts is not None:
        markers = (*markers, thinking.OPENING, thinking.CLOSING)
    token_ids = (model.tokenizer.token_id(marker) for marker in markers)
    grammar, grammar_loc = _grammar(request, model, calls, thoughts)
    return OutputPlan(
        rules=OutputRules(
            thinking=thoughts,
            calls=None if calls is None else _call_rules(calls),
        ),
        shown_special_ids=model.tokenizer.special_ids.intersection(
            token_id for token_id in token_ids if token_id is not None
        ),
        grammar=grammar,
        grammar_loc=grammar_loc,
    )


def _call_rules(calls: _Calls) -> CallRules:
    return CallRules(
        call_format=calls.call_format,
        names=frozenset(function.name for function in calls.functions),
        max_calls=1 if calls.is_one else None,
        has_content=not calls.is_forced,
    )


def _calls(request: ChatCompletionRequest, model: ServedModel, check: SchemaCheck) -> _Calls | None:
    choice = request.tool_choice
    tools = [
        (position, tool.function)
        for position, tool in enumerate(request.tools or ())
        if isinstance(tool, FunctionTool)
    ]
    if not tools or choice == "none":
        return None
    if model.call_format is None:
        message = (
            "this model is not known to call functions (its chat template shows no call format "
            'known here; `tool_parser` in the configuration names one); use tool_choice "none"'
        )
        raise _refusal(("tools",), message)
    is_named = isinstance(choice, NamedToolChoice)
    is_forced = is_named or choice == "required"
    if isinstance(choice, NamedToolChoice):
        tools = [(at, tool) for at, tool in tools if tool.name == choice.function.name]
    elif isinstance(choice, AllowedToolsChoice):
        is_forced = choice.allowed_tools.mode == "required"
        tools = [(at, tool) for at, tool in tools if tool.name in choice.allowed_tools.names]
    return _Calls(
        call_format=model.call_format,
        functions=[_guided(tool, at, check, is_forced=is_forced) for at, tool in tools],
        is_forced=is_forced,
        is_one=is_named or request.parallel_tool_calls is False,
        is_exact=any(tool.strict for _, tool in tools),
    )


def _guided(
    function: FunctionDefinition, position: int, check: SchemaCheck, *, is_forced: bool
) -> GuidedFunction:
    if function.parameters is None:
        return GuidedFunction(name=function.name, schema_text=_NO_ARGUMENTS)
    loc = ("tools", position, "function", "parameters")
    try:
        text = orjson.dumps({"type": "object", **function.parameters}).decode()
    except orjson.JSONEncodeError:  # the only reason left: a few hundred levels
        raise _refusal(loc, "must be nested less deeply") from None
    complaint = check.complaint(text)
    if complaint is None:
        return GuidedFunction(name=function.name, schema_text=text)
    if is_forced or function.strict:
        raise _refusal(loc, complaint)
    return GuidedFunction(name=function.name, schema_text=_ANY_OBJECT)


def _grammar(
    request: ChatCompletionRequest,
    model: ServedModel,
    calls: _Calls | None,
    thoughts: Thinking | None,
) -> tuple[GrammarSpec | None, tuple[str, ...] | None]:
    guide = request.guide
    if calls is None:
        return _answer_grammar(guide, model, thoughts)
    if calls.is_forced:
        _check_forced(request)
        rules = calls.call_format.forced_rules(calls.functions, is_one=calls.is_one)
        return _spec(("calls",), rules, model, thoughts), ("tools",)
    if guide is not None:
        rules = calls.call_format.forced_rules(calls.functions, is_one=calls.is_one)
        answer = _answer_beside_calls(guide, calls)
        return _spec(("calls", "answer"), rules + answer, model, thoughts), ("tools",)
    if not _can_be_guided(request, calls):
        return None, None
    excluded = () if thoughts is None else thoughts.beginning(model.tokenizer)
    rules = calls.call_format.free_rules(calls.functions, is_one=calls.is_one, excluded=excluded)
    return _spec(("message",), rules, model, thoughts, may_stay_open=True), ("tools",)


def _can_be_guided(request: ChatCompletionRequest, calls: _Calls) -> bool:
    """Whether any text stays possible, at no unreasonable cost."""
    if request.ignore_eos or request.min_tokens:
        return False
    num_chars = sum(len(function.schema_text) for function in calls.functions)
    return calls.is_exact or num_chars <= MAX_FREE_SCHEMA_CHARS


def _check_forced(request: ChatCompletionRequest) -> None:
    guide = request.guide
    problems = []
    if guide is not None:
        message = "cannot be used with a tool_choice that forces a call"
        problems.append(FieldProblem(loc=guide.loc, message=message))
    for name in ("ignore_eos", "min_tokens"):
        if getattr(request, name):
            message = "cannot be used with a tool_choice that forces a call"
            problems.append(FieldProblem(loc=(name,), message=message))
    if problems:
        raise ValidationError(problems)


def _answer_beside_calls(guide: Guide, calls: _Calls) -> str:
    rule = _answer_rule(guide.spec)
    if rule is None or isinstance(calls.call_format, LlamaJSON):
        reason = "this model's calls are JSON themselves" if rule else "only JSON and choices can"
        raise _refusal(guide.loc, f'cannot be used with tools ({reason}); use tool_choice "none"')
    return rule


def _answer_grammar(
    guide: Guide | None, model: ServedModel, thoughts: Thinking | None
) -> tuple[GrammarSpec | None, tuple[str, ...] | None]:
    """The client's grammar, after the thoughts of a model that has some."""
    if guide is None:
        return None, None
    rule = None if thoughts is None else _answer_rule(guide.spec)
    if rule is None:
        if thoughts is not None and thoughts.is_open:
            message = "cannot be used while the model thinks first; only JSON and choices can"
            raise _refusal(guide.loc, message)
        return guide.spec, guide.loc
    return _spec(("answer",), rule, model, thoughts), guide.loc


def _answer_rule(spec: GrammarSpec) -> str | None:
    """A Lark rule `answer`; None where the client's grammar cannot be part of another one."""
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            return lark.lines(f"answer: %json {spec.text}")
        case GrammarKind.JSON_OBJECT:
            return lark.lines(f"answer: %json {_ANY_OBJECT}")
        case GrammarKind.CHOICE:
            choices = orjson.loads(spec.text)
            return lark.lines("answer: " + " | ".join(map(lark.literal, choices)))
        case _:
            return None


def _spec(
    starts: Sequence[str],
    rules: str,
    model: ServedModel,
    thoughts: Thinking | None,
    *,
    may_stay_open: bool = False,
) -> GrammarSpec:
    """The rules with thoughts in front. `may_stay_open`: an output may end within them."""
    start = " | ".join(starts)
    if thoughts is not None:
        is_open = thoughts.is_open
        start = f"thinking ({start})" if is_open else f"thinking? ({start})"
        if may_stay_open:
            start = f"{start} | unfinished_thoughts?"
        rules += thoughts.rules(model.tokenizer)
    return GrammarSpec(kind=GrammarKind.LARK, text=lark.lines(f"start: {start}") + rules)


def _refusal(loc: Loc, message: str) -> ValidationError:
    return ValidationError([FieldProblem(loc=loc, message=message)])
