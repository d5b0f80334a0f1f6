"""Anthropic's messages on the wire: the sequence of typed events, and the whole `message`."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

from cluster.anthropic_schema.message import (
    AnswerBlock,
    AnswerText,
    AnswerThinking,
    AnswerToolUse,
    MessageObject,
    MessageUsage,
    StopReason,
    error_body,
)
from cluster.errors import ServingError
from cluster.openai_schema.usage import Usage
from cluster.types import FinishReason
from deployments.ingress.answer import typed_event
from deployments.ingress.choice import Piece
from deployments.ingress.generation import Generation
from deployments.ingress.served_model import ServedModel
from models.tool_parsing.message_parts import CallDelta

Event = dict[str, Any]

_PING: Event = {"type": "ping"}
_TEXT, _THINKING = "text", "thinking"


class MessageAnswer:
    """See `Answer`. Thoughts, text and each call are content blocks of their own."""

    def __init__(self, answer_id: str, model: ServedModel, generation: Generation) -> None:
        self._id = answer_id
        self._model_name = model.name
        self._generation = generation
        self._blocks: list[AnswerBlock] = []  # the finished ones
        self._open: _OpenBlock | None = None
        self._open_call_index = -1
        self._finish_reason: FinishReason | None = None
        self._stop_string: str | None = None

    def opening(self) -> bytes:
        message = self._message(self._generation.usage)
        return typed_event({"type": "message_start", "message": message.model_dump()})

    def chunk(self, piece: Piece) -> bytes:
        return b"".join(map(typed_event, self._take(piece)))

    def closing(self, usage: Usage) -> bytes:
        events = self._close_last()
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_string}
        written = MessageUsage.of(usage).model_dump()
        events.append({"type": "message_delta", "delta": delta, "usage": written})
        events.append({"type": "message_stop"})
        return b"".join(map(typed_event, events))

    def failure(self, error: ServingError) -> bytes:
        return typed_event(error_body(error, self._id).model_dump())

    def add(self, piece: Piece) -> None:
        deque(self._take(piece), maxlen=0)

    def whole(self, usage: Usage) -> bytes:
        self._close_last()
        return self._message(usage).model_dump_json().encode()

    @property
    def _stop_reason(self) -> StopReason | None:
        if self._finish_reason is None:
            return None
        if self._finish_reason is FinishReason.LENGTH:
            return "max_tokens"
        if self._stop_string is not None:
            return "stop_sequence"
        has_calls = any(isinstance(block, AnswerToolUse) for block in self._blocks)
        return "tool_use" if has_calls else "end_turn"

    def _message(self, usage: Usage) -> MessageObject:
        return MessageObject(
            id=self._id,
            model=self._model_name,
            content=self._blocks,
            stop_reason=self._stop_reason,
            stop_sequence=self._stop_string,
            usage=MessageUsage.of(usage),
        )

    def _take(self, piece: Piece) -> Iterator[Event]:
        """Record a piece; the events that tell of it."""
        if piece.reasoning:
            yield from self._begin(_THINKING)
            yield self._grow("thinking_delta", "thinking", piece.reasoning)
        if piece.text:
            yield from self._begin(_TEXT)
            yield self._grow("text_delta", "text", piece.text)
        for call in piece.calls:
            yield from self._take_call(call)
        if piece.finish_reason is not None:
            self._finish_reason = piece.finish_reason
            self._stop_string = piece.stop_string

    def _take_call(self, call: CallDelta) -> Iterator[Event]:
        if call.call_index != self._open_call_index:
            assert call.call_id is not None, "the first part of a call has its id and name"
            assert call.name is not None
            self._open_call_index = call.call_index
            yield from self._replace_open(_OpenBlock("tool_use", call.call_id, call.name))
        if call.arguments:
            yield self._grow("input_json_delta", "partial_json", call.arguments)

    def _begin(self, kind: str) -> list[Event]:
        """Make a block of this kind the open one."""
        if self._open is not None and self._open.kind == kind:
            return []
        return self._replace_open(_OpenBlock(kind))

    def _replace_open(self, block: "_OpenBlock") -> list[Event]:
        events = self._close()
        is_first = not self._blocks
        self._open = block
        start = block.finished().model_dump()
        index = len(self._blocks)
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        return [*events, _PING] if is_first else events

    def _grow(self, delta_type: str, key: str, text: str) -> Event:
        assert self._open is not None
        self._open.texts.append(text)
        return {
            "type": "content_block_delta",
            "index": len(self._blocks),
            "delta": {"type": delta_type, key: text},
        }

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        event = {"type": "content_block_stop", "index": len(self._blocks)}
        self._blocks.append(self._open.finished())
        self._open = None
        return [event]

    def _close_last(self) -> list[Event]:
        """An answer without a word is a text block without text."""
        events = [] if self._open or self._blocks else self._begin(_TEXT)
        return events + self._close()


class _OpenBlock:
    """A content block that still grows."""

    def __init__(self, kind: str, call_id: str = "", name: str = "") -> None:
        self.kind = kind
        self.texts: list[str] = []
        self._call_id = call_id
        self._name = name

    def finished(self) -> AnswerBlock:
        text = "".join(self.texts)
        if self.kind == _TEXT:
            return AnswerText(text=text)
        if self.kind == _THINKING:
            return AnswerThinking(thinking=text)
        return AnswerToolUse(id=self._call_id, name=self._name, input=_input(text))


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as an object; {} for those that `max_tokens` cut (`stop_reason` says so)."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
