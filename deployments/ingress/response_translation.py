"""From a Responses request to the chat request that means the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.guides import JSONSchemaFormat, ResponseFormat
from cluster.openai_schema.messages import (
    AssistantMessage,
    CalledFunction,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from cluster.openai_schema.response_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputItem,
    ItemMedia,
    ItemPart,
    ItemText,
    MessageItem,
    ReasoningItem,
)
from cluster.openai_schema.response_request import (
    FlatAllowedTools,
    FlatFunctionTool,
    FlatNamedToolChoice,
    FlatTool,
    FlatToolChoice,
    JSONSchemaTextFormat,
    ResponseRequest,
)
from cluster.openai_schema.tools import (
    AllowedFunction,
    AllowedTools,
    AllowedToolsChoice,
    FunctionDefinition,
    FunctionTool,
    NamedFunction,
    NamedToolChoice,
    Tool,
    ToolChoice,
)
from deployments.ingress.field_names import FieldNames, FieldPath
from deployments.ingress.translated_chat import TranslatedChat

_RENAMED: dict[FieldPath, FieldPath] = {
    ("messages",): ("input",),
    ("max_tokens",): ("max_output_tokens",),
    ("response_format", "json_schema"): ("text", "format"),
    ("response_format",): ("text", "format"),
    ("reasoning_effort",): ("reasoning", "effort"),
    ("logprobs",): ("include",),
}


def chat_of_response(request: ResponseRequest) -> TranslatedChat:
    """
    Raises:
        ValidationError: parts that a text model cannot read, or fields that contradict each other.
    """
    conversation = _Conversation()
    if request.instructions is not None:
        message = SystemMessage(role="system", content=request.instructions)
        conversation.add(message, ("instructions",))
    if isinstance(request.input, str):
        conversation.add(UserMessage(role="user", content=request.input), ("input",))
    else:
        for position, item in enumerate(request.input):
            conversation.add_item(item, ("input", position))
        conversation.end_turn()
    chat = ChatCompletionRequest(
        messages=conversation.messages,
        max_completion_tokens=None,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        logprobs=request.has_logprobs or None,
        top_logprobs=request.top_logprobs if request.has_logprobs else None,
        response_format=_response_format(request),
        tools=[_tool(tool) for tool in request.tools or ()] or None,
        tool_choice=_tool_choice(request.tool_choice, request.tools or ()),
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        stream=request.stream,
    )
    names = FieldNames(renamed=_RENAMED, messages=conversation.locs)
    return TranslatedChat.checked(chat, names)


@dataclass(slots=True, kw_only=True)
class _AssistantTurn:
    """Items that make one assistant message together: reasoning, text, calls."""

    loc: FieldPath
    reasoning: str | None = None
    text: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def has_spoken(self) -> bool:
        return self.text is not None or bool(self.calls)


class _Conversation:
    """Chat messages, each with the place in the request that it comes from."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.locs: list[FieldPath] = []
        self._turn: _AssistantTurn | None = None

    def add(self, message: Message, loc: FieldPath) -> None:
        self.end_turn()
        self._append(message, loc)

    def add_item(self, item: InputItem, loc: FieldPath) -> None:
        if isinstance(item, MessageItem):
            self._add_message(item, loc)
        elif isinstance(item, FunctionCallItem):
            function = CalledFunction(name=item.name, arguments=item.arguments)
            call = ToolCall(id=item.call_id, type="function", function=function)
            self._open_turn(loc).calls.append(call)
        elif isinstance(item, FunctionCallOutputItem):
            text = _text(item.output, (*loc, "output"))
            self.add(ToolMessage(role="tool", content=text, tool_call_id=item.call_id), loc)
        else:
            self._add_reasoning(item, loc)

    def end_turn(self) -> None:
        """Write down the assistant's turn, if one is open."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        # Thoughts alone are a message without text; calls alone have no content.
        content = turn.text if turn.calls else turn.text or ""
        message = AssistantMessage(
            role="assistant",
            content=content,
            tool_calls=turn.calls or None,
            reasoning_content=turn.reasoning,
        )
        self._append(message, turn.loc)

    def _append(self, message: Message, loc: FieldPath) -> None:
        self.messages.append(message)
        self.locs.append(loc)

    def _add_message(self, item: MessageItem, loc: FieldPath) -> None:
        text = _text(item.content, (*loc, "content"))
        if item.role == "assistant":
            if self._turn is not None and self._turn.has_spoken:
                self.end_turn()
            self._open_turn(loc).text = text
        elif item.role == "user":
            self.add(UserMessage(role="user", content=text), loc)
        else:
            self.add(SystemMessage(role=item.role, content=text), loc)

    def _add_reasoning(self, item: ReasoningItem, loc: FieldPath) -> None:
        if self._turn is not None and self._turn.has_spoken:
            self.end_turn()
        thoughts = [part.text for part in item.content or item.summary]
        turn = self._open_turn(loc)
        turn.reasoning = "\n".join(filter(None, (turn.reasoning, *thoughts)))

    def _open_turn(self, loc: FieldPath) -> _AssistantTurn:
        if self._turn is None:
            self._turn = _AssistantTurn(loc=loc)
        return self._turn


def _text(content: str | Sequence[ItemPart], loc: FieldPath) -> str:
    """The text of a list of parts; a line each, as in chat messages."""
    if isinstance(content, str):
        return content
    texts = []
    for position, part in enumerate(content):
        if isinstance(part, ItemMedia):
            message = f"this model reads text only; given {part.type!r}"
            raise ValidationError([FieldProblem(loc=(*loc, position, "type"), message=message)])
        texts.append(part.text if isinstance(part, ItemText) else part.refusal)
    return "\n".join(texts)


def _response_format(request: ResponseRequest) -> ResponseFormat | None:
    chosen = None if request.text is None else request.text.format
    if isinstance(chosen, JSONSchemaTextFormat):
        return JSONSchemaFormat(type="json_schema", json_schema=chosen)
    return chosen


def _tool(tool: FlatTool) -> Tool:
    if not isinstance(tool, FlatFunctionTool):
        return tool
    given: dict[str, Any] = tool.model_dump(exclude={"type"})
    return FunctionTool(type="function", function=FunctionDefinition(**given))


def _tool_choice(choice: FlatToolChoice | None, tools: Sequence[FlatTool]) -> ToolChoice | None:
    if isinstance(choice, FlatNamedToolChoice):
        return NamedToolChoice(type="function", function=NamedFunction(name=choice.name))
    if isinstance(choice, FlatAllowedTools):
        allowed = [
            AllowedFunction(type="function", function=NamedFunction(name=tool.name))
            for tool in choice.tools
        ]
        return AllowedToolsChoice(
            type="allowed_tools", allowed_tools=AllowedTools(mode=choice.mode, tools=allowed)
        )
    if not tools and choice in ("auto", "none"):
        return None  # no calls either way; SDKs send it with an empty list
    return choice
