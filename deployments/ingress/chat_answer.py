"""Chat completions on the wire: `chat.completion.chunk` events and the whole `chat.completion`.

An event with text alone, nearly all of them, is three byte strings: what comes before the text,
the text as JSON, what comes after.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import orjson

from cluster.errors import ServingError
from cluster.openai_schema.chat import (
    AnswerCalledFunction,
    AnswerMessage,
    AnswerToolCall,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChoiceLogprobs,
    RetrievalSources,
    RetrievedChunk,
)
from cluster.openai_schema.usage import Usage
from cluster.types import FinishReason, FoundChunk
from deployments.ingress.answer import DONE, error_event, event, unix_time
from deployments.ingress.choice import Piece, TokenEntry
from deployments.ingress.logprobs import chat_logprobs
from deployments.ingress.served_model import ServedModel
from models.tool_parsing.message_parts import CallDelta

_TEXT_MARK = "\x00text\x00"

_FinishReason = Literal["stop", "length", "tool_calls"]


class ChatAnswer:
    """See `Answer`."""

    def __init__(
        self,
        answer_id: str,
        model: ServedModel,
        request: ChatCompletionRequest,
        *,
        chunks: Sequence[FoundChunk] = (),
    ) -> None:
        """`chunks`: what retrieval put into the prompt; told where the request wants it."""
        self._sources = (
            RetrievalSources(chunks=[RetrievedChunk.of(one) for one in chunks])
            if request.returns_chunks
            else None
        )
        self._model = model
        self._num_top_logprobs = request.num_top_logprobs
        self._head: dict[str, object] = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": unix_time(),
            "model": model.name,
        }
        self._has_usage = request.wants_usage_chunk
        self._frames = [self._frame(index) for index in range(request.num_choices)]
        self._may_call = request.may_call_functions
        self._names_function = request.names_function
        self._messages = [_Message() for _ in self._frames]

    def opening(self) -> bytes:
        # A message that turns out to be calls alone has no content, not an empty one.
        content = None if self._may_call else ""
        return b"".join(
            self._chunk(index, {"role": "assistant", "content": content})
            for index in range(len(self._frames))
        )

    def chunk(self, piece: Piece) -> bytes:
        index = piece.choice_index
        data = b""
        if piece.entries or piece.reasoning or piece.calls:
            logprobs = self._logprobs(piece.entries) if piece.entries else None
            for delta in self._deltas(piece):
                data += self._chunk(index, delta, logprobs=logprobs)
                logprobs = None  # they leave once
        elif piece.text:
            before, after = self._frames[index]
            data = before + orjson.dumps(piece.text) + after
        if piece.calls:
            self._messages[index].has_calls = True
        if piece.finish_reason is not None:
            reason = self._finish_reason(self._messages[index], piece.finish_reason)
            data += self._chunk(index, self._last_delta(), finish_reason=reason)
        return data

    def closing(self, usage: Usage) -> bytes:
        if not self._has_usage:
            return DONE
        return event({**self._head, "choices": [], "usage": usage.model_dump()}) + DONE

    def failure(self, error: ServingError) -> bytes:
        return error_event(error)

    def add(self, piece: Piece) -> None:
        self._messages[piece.choice_index].add(piece)

    def whole(self, usage: Usage) -> bytes:
        completion = ChatCompletion(
            id=cast("str", self._head["id"]),
            created=cast("int", self._head["created"]),
            model=self._model.name,
            choices=[self._whole_choice(index) for index in range(len(self._frames))],
            usage=usage,
        )
        return orjson.dumps(completion.model_dump())

    def _whole_choice(self, index: int) -> ChatChoice:
        message = self._messages[index]
        assert message.finish_reason is not None, "every choice has ended"
        return ChatChoice(
            index=index,
            message=message.whole(self._sources),
            logprobs=self._logprobs(message.entries),
            finish_reason=self._finish_reason(message, message.finish_reason),
        )

    def _last_delta(self) -> dict[str, object]:
        return {} if self._sources is None else {"retrieval": self._sources.model_dump()}

    def _finish_reason(self, message: "_Message", reason: FinishReason) -> _FinishReason:
        """As OpenAI does it, a call of the function that the request names is an ordinary stop."""
        if reason is FinishReason.STOP and message.has_calls and not self._names_function:
            return "tool_calls"
        return "length" if reason is FinishReason.LENGTH else "stop"

    def _deltas(self, piece: Piece) -> Iterator[dict[str, object]]:
        """At least one, for the piece's logprobs."""
        if piece.reasoning:
            yield {"reasoning_content": piece.reasoning}
        if piece.text:
            yield {"content": piece.text}
        if piece.calls:
            yield {"tool_calls": [_call_delta(call) for call in piece.calls]}
        if not (piece.reasoning or piece.text or piece.calls):
            yield {}

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChoiceLogprobs | None:
        if self._num_top_logprobs is None:
            return None
        return ChoiceLogprobs(
            content=chat_logprobs(self._model.tokenizer, entries, self._num_top_logprobs)
        )

    def _chunk(
        self,
        index: int,
        delta: dict[str, object],
        *,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: _FinishReason | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": None if logprobs is None else logprobs.model_dump(),
            "finish_reason": finish_reason,
        }
        value = {**self._head, "choices": [choice]}
        if self._has_usage:
            value["usage"] = None
        return event(value)

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the JSON text of a content event."""
        written = self._chunk(index, {"content": _TEXT_MARK})
        before, after = written.rsplit(orjson.dumps(_TEXT_MARK), 1)
        return before, after


class _Message:
    """The parts of one choice's message so far."""

    def __init__(self) -> None:
        self.has_calls = False
        self.entries: list[TokenEntry] = []
        self.finish_reason: FinishReason | None = None
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []

    def add(self, piece: Piece) -> None:
        self._content.append(piece.text)
        self._reasoning.append(piece.reasoning)
        for call in piece.calls:
            self.has_calls = True
            if call.call_id is not None and call.name is not None:
                self._calls.append(_Call(call.call_id, call.name, []))
            self._calls[call.call_index].arguments.append(call.arguments)
        self.entries.extend(piece.entries)
        self.finish_reason = piece.finish_reason

    def whole(self, sources: RetrievalSources | None) -> AnswerMessage:
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        has_more = bool(self._calls or reasoning)
        return AnswerMessage(
            content=None if has_more and not content else content,
            reasoning_content=reasoning or None,
            tool_calls=[call.whole() for call in self._calls] or None,
            retrieval=sources,
        )


class _Call(NamedTuple):
    call_id: str
    name: str
    arguments: list[str]

    def whole(self) -> AnswerToolCall:
        function = AnswerCalledFunction(name=self.name, arguments="".join(self.arguments))
        return AnswerToolCall(id=self.call_id, function=function)


def _call_delta(call: CallDelta) -> dict[str, object]:
    if call.call_id is None:
        return {"index": call.call_index, "function": {"arguments": call.arguments}}
    return {
        "index": call.call_index,
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
