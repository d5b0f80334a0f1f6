"""From a request of Anthropic's Messages API to the chat request that means the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from cluster.anthropic_schema.blocks import (
    AssistantBlock,
    AssistantTurn,
    MediaBlock,
    ResultPart,
    SystemTurn,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
    UserBlock,
)
from cluster.anthropic_schema.request import (
    CountTokensRequest,
    InputTool,
    InputToolChoice,
    MessageRequest,
    NamedChoice,
    NoChoice,
)
from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.guides import JSONSchema, JSONSchemaFormat
from cluster.openai_schema.messages import (
    AssistantMessage,
    CalledFunction,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from cluster.openai_schema.tools import (
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
    ("stop",): ("stop_sequences",),
    ("response_format", "json_schema"): ("output_config", "format"),
    ("response_format",): ("output_config", "format"),
    ("reasoning_effort",): ("output_config", "effort"),
    ("enable_thinking",): ("thinking",),
    ("parallel_tool_calls",): ("tool_choice", "disable_parallel_tool_use"),
}


def chat_of_message(request: CountTokensRequest) -> TranslatedChat:
    """
    Raises:
        ValidationError: parts that a text model cannot read, or fields that contradict each other.
    """
    conversation = _Conversation()
    if request.system:
        conversation.add_system(request.system, ("system",))
    for position, turn in enumerate(request.messages):
        conversation.add_turn(turn, ("messages", position))
    conversation.end_turn()
    chat = ChatCompletionRequest(
        messages=conversation.messages,
        tools=[_tool(tool) for tool in request.tools or ()] or None,
        tool_choice=_tool_choice(request.tool_choice, request.tools or ()),
        parallel_tool_calls=_parallel_tool_calls(request.tool_choice),
        **_output_fields(request),
        **(_sampling_fields(request) if isinstance(request, MessageRequest) else {}),
    )
    if isinstance(request, MessageRequest) and request.stop_sequences:
        # Past the check of chat requests: this endpoint allows more of them.
        chat = chat.model_copy(update={"stop": tuple(request.stop_sequences)})
    names = FieldNames(
        renamed=_RENAMED,
        messages=conversation.locs,
        of_functions={"parameters": "input_schema"},
    )
    return TranslatedChat.checked(chat, names)


@dataclass(slots=True, kw_only=True)
class _OpenTurn:
    """Neighbouring messages of one role are one message."""

    role: str
    loc: FieldPath
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)


class _Conversation:
    """Chat messages, each with the place in the request that it comes from."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.locs: list[FieldPath] = []
        self._turn: _OpenTurn | None = None

    def add_system(self, content: str | Sequence[TextBlock], loc: FieldPath) -> None:
        self.end_turn()
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        self._append(SystemMessage(role="system", content=text), loc)

    def add_turn(self, turn: Turn, loc: FieldPath) -> None:
        if isinstance(turn, SystemTurn):
            self.add_system(turn.content, loc)
            return
        if isinstance(turn.content, str):
            self._open(turn.role, loc).texts.append(turn.content)
            return
        if isinstance(turn, AssistantTurn):
            for block in turn.content:
                self._add_assistant_block(block, loc)
            return
        for position, part in enumerate(turn.content):
            self._add_user_block(part, loc, (*loc, "content", position))

    def end_turn(self) -> None:
        """Write down the message that is still growing."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        text = "\n".join(turn.texts)
        if turn.role == "user":
            self._append(UserMessage(role="user", content=text), turn.loc)
            return
        message = AssistantMessage(
            role="assistant",
            content=None if turn.calls and not turn.texts else text,
            tool_calls=turn.calls or None,
            reasoning_content="\n".join(turn.thoughts) if turn.thoughts else None,
        )
        self._append(message, turn.loc)

    def _append(self, message: Message, loc: FieldPath) -> None:
        self.messages.append(message)
        self.locs.append(loc)

    def _open(self, role: str, loc: FieldPath) -> _OpenTurn:
        if self._turn is None or self._turn.role != role:
            self.end_turn()
            self._turn = _OpenTurn(role=role, loc=loc)
        return self._turn

    def _add_user_block(self, block: UserBlock, loc: FieldPath, block_loc: FieldPath) -> None:
        if not isinstance(block, ToolResultBlock):
            self._open("user", loc).texts.append(_text_of(block, block_loc))
            return
        self.end_turn()
        text = _result_text(block, (*block_loc, "content"))
        message = ToolMessage(role="tool", content=text, tool_call_id=block.tool_use_id)
        self._append(message, block_loc)

    def _add_assistant_block(self, block: AssistantBlock, loc: FieldPath) -> None:
        turn = self._open("assistant", loc)
        if isinstance(block, TextBlock):
            turn.texts.append(block.text)
        elif isinstance(block, ToolUseBlock):
            arguments = orjson.dumps(block.input).decode()
            function = CalledFunction(name=block.name, arguments=arguments)
            turn.calls.append(ToolCall(id=block.id, type="function", function=function))
        else:
            turn.thoughts.append(block.thinking)


def _text_of(block: ResultPart, loc: FieldPath) -> str:
    if isinstance(block, MediaBlock):
        message = f"this model reads text only; given {block.type!r}"
        raise ValidationError([FieldProblem(loc=(*loc, "type"), message=message)])
    return block.text


def _result_text(block: ToolResultBlock, loc: FieldPath) -> str:
    content = block.content or ""
    if not isinstance(content, str):
        content = "\n".join(_text_of(part, (*loc, i)) for i, part in enumerate(content))
    return f"Error: {content}" if block.is_error else content


def _tool(tool: InputTool) -> Tool:
    function = FunctionDefinition(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
    )
    return FunctionTool(type="function", function=function)


def _tool_choice(choice: InputToolChoice | None, tools: Sequence[InputTool]) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, NamedChoice):
        return NamedToolChoice(type="function", function=NamedFunction(name=choice.name))
    if choice.type == "any":
        return "required"
    return choice.type if tools else None  # without tools there are no calls either way


def _parallel_tool_calls(choice: InputToolChoice | None) -> bool | None:
    if choice is None or isinstance(choice, NoChoice):
        return None
    return False if choice.disable_parallel_tool_use else None


def _output_fields(request: CountTokensRequest) -> dict[str, Any]:
    config = request.output_config
    fields: dict[str, Any] = {}
    if config is not None and config.format is not None:
        named = {"name": "output", "schema": config.format.json_schema}
        schema = JSONSchema.model_validate(named)
        fields["response_format"] = JSONSchemaFormat(type="json_schema", json_schema=schema)
    if config is not None and config.effort is not None:
        fields["reasoning_effort"] = config.effort
    if request.thinking is not None:
        fields["enable_thinking"] = request.thinking.type == "adaptive"
    return fields


def _sampling_fields(request: MessageRequest) -> dict[str, Any]:
    return {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stream": request.stream,
    }
