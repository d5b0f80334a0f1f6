"""Tools in a chat request: functions (the client runs them) and retrieval (the server does)."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from cluster.errors import FieldProblem
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import integer, shown

MAX_TOOLS = 128
MAX_RESULTS = 100  # of all retrieval tools of a request

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(Fields):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON Schema
    strict: bool | None = None


class FunctionTool(Fields):
    type: Literal["function"]
    function: FunctionDefinition


class RetrievalOptions(Fields):
    bucket_ids: Annotated[list[str], Field(min_length=1, max_length=64)]
    max_num_results: Annotated[int, integer(low=1, high=MAX_RESULTS)] | None = None
    return_chunks: bool | None = None  # None: true; whether the answer says what was found


class RetrievalTool(Fields):
    type: Literal["retrieval"]
    retrieval: RetrievalOptions


def _tool_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("function", "retrieval") else None


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[RetrievalTool, Tag("<retrieval>")],
    Discriminator(
        _tool_tag,
        custom_error_type="tool_type",
        custom_error_message="must be 'function' or 'retrieval'",
    ),
]


class NamedFunction(Fields):
    name: FunctionName


class NamedToolChoice(Fields):
    type: Literal["function"]
    function: NamedFunction


class AllowedFunction(Fields):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Fields):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedFunction], Field(min_length=1, max_length=MAX_TOOLS)]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.tools)


class AllowedToolsChoice(Fields):
    """Some of the tools only; the model is told about all of them, so that prompts stay equal."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_tag(value: object) -> str:
    if isinstance(value, str):
        return "<mode>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<allowed>" if kind == "allowed_tools" else "<named>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedToolChoice, Tag("<named>")]
    | Annotated[AllowedToolsChoice, Tag("<allowed>")],
    Discriminator(_choice_tag),
]


def tool_problems(tools: Sequence[Tool], choice: ToolChoice | None) -> list[FieldProblem]:
    """What is wrong between tools, and between them and the choice."""
    found: list[FieldProblem] = _retrieval_problems(tools)
    names: set[str] = set()
    for position, tool in enumerate(tools):
        if not isinstance(tool, FunctionTool):
            continue
        loc = ("tools", position, "function")
        function = tool.function
        if function.name in names:
            message = f"must differ from the other functions' names; given {shown(function.name)}"
            found.append(FieldProblem(loc=(*loc, "name"), message=message))
        names.add(function.name)
        kind = (function.parameters or {}).get("type", "object")
        if kind != "object":
            message = f"must be 'object': arguments are one; given {shown(kind)}"
            found.append(FieldProblem(loc=(*loc, "parameters", "type"), message=message))
    if isinstance(choice, NamedToolChoice):
        found += _unknown(choice.function.name, names, ("tool_choice", "function", "name"))
    elif isinstance(choice, AllowedToolsChoice):
        for position, allowed in enumerate(choice.allowed_tools.tools):
            place = ("tool_choice", "allowed_tools", "tools", position, "function", "name")
            found += _unknown(allowed.function.name, names, place)
    elif choice == "required" and not names:
        found.append(FieldProblem(loc=("tool_choice",), message="needs tools that are functions"))
    return found


def _retrieval_problems(tools: Sequence[Tool]) -> list[FieldProblem]:
    wanted = [tool.retrieval.max_num_results or 1 for tool in tools if tool.type == "retrieval"]
    if sum(wanted) <= MAX_RESULTS:
        return []
    message = f"retrieval asks for {sum(wanted)} results in all; there are at most {MAX_RESULTS}"
    return [FieldProblem(loc=("tools",), message=message)]


def _unknown(name: str, names: set[str], loc: tuple[str | int, ...]) -> list[FieldProblem]:
    if name in names:
        return []
    return [FieldProblem(loc=loc, message=f"is not one of the tools; given {shown(name)}")]
