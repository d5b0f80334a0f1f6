"""Responses on the wire: the sequence of typed events, and the whole `response` object."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import orjson

from cluster.errors import ServingError, TooManyRequestsError
from cluster.openai_schema.guides import JSONObjectFormat, TextFormat
from cluster.openai_schema.response_object import (
    IncompleteDetails,
    ItemState,
    OutputCall,
    OutputMessage,
    OutputReasoning,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
)
from cluster.openai_schema.response_request import JSONSchemaTextFormat, ResponseRequest
from cluster.openai_schema.usage import Usage
from cluster.types import FinishReason
from deployments.ingress.answer import typed_event, unix_time
from deployments.ingress.choice import Piece
from deployments.ingress.logprobs import chat_logprobs
from deployments.ingress.response_output import (
    Event,
    GrowingCall,
    GrowingItem,
    GrowingMessage,
    GrowingReasoning,
)
from deployments.ingress.served_model import ServedModel
from models.tool_parsing.message_parts import CallDelta

OutputItem = OutputMessage | OutputCall | OutputReasoning


class ResponseAnswer:
    """See `Answer`. Each call, and each run of text, is an output item of its own."""

    def __init__(self, answer_id: str, model: ServedModel, request: ResponseRequest) -> None:
        self._model = model
        self._num_top_logprobs = request.top_logprobs or 0
        self._has_logprobs = request.has_logprobs
        self._echo = _echo(request, model)
        self._head: dict[str, Any] = {
            "id": answer_id,
            "created_at": unix_time(),
            "model": model.name,
        }
        self._num_events = 0
        self._output: list[OutputItem] = []
        self._open: GrowingItem | None = None
        self._open_call_index = -1
        self._finish_reason: FinishReason | None = None

    def opening(self) -> bytes:
        response = self._response("in_progress").model_dump()
        return self._written(
            {"type": f"response.{what}", "response": response}
            for what in ("created", "in_progress")
        )

    def chunk(self, piece: Piece) -> bytes:
        return self._written(self._take(piece))

    def closing(self, usage: Usage) -> bytes:
        events = self._close_last()
        response = self._response(self._end_status, usage=usage).model_dump()
        end: Event = {"type": f"response.{self._end_status}", "response": response}
        return self._written([*events, end])

    def failure(self, error: ServingError) -> bytes:
        self._close("incomplete")
        is_limit = isinstance(error, TooManyRequestsError)
        code = "rate_limit_exceeded" if is_limit else "server_error"
        failure = ResponseFailure(code=code, message=error.detail)
        response = self._response("failed", failure=failure).model_dump()
        return self._written([{"type": "response.failed", "response": response}])

    def add(self, piece: Piece) -> None:
        deque(self._take(piece), maxlen=0)

    def whole(self, usage: Usage) -> bytes:
        self._close_last()
        return orjson.dumps(self._response(self._end_status, usage=usage).model_dump())

    @property
    def _end_status(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if self._finish_reason is FinishReason.LENGTH else "completed"

    def _take(self, piece: Piece) -> Iterator[Event]:
        """Record a piece; the events that tell of it."""
        if piece.reasoning:
            yield from self._begin(GrowingReasoning)
            assert isinstance(self._open, GrowingReasoning)
            yield self._open.grown(piece.reasoning)
        if piece.text or piece.entries:
            yield from self._begin(GrowingMessage)
            assert isinstance(self._open, GrowingMessage)
            entries = chat_logprobs(self._model.tokenizer, piece.entries, self._num_top_logprobs)
            yield self._open.grown(piece.text, entries if self._has_logprobs else ())
        for call in piece.calls:
            yield from self._take_call(call)
        if piece.finish_reason is not None:
            self._finish_reason = piece.finish_reason

    def _take_call(self, call: CallDelta) -> Iterator[Event]:
        if call.call_index != self._open_call_index:
            assert call.call_id is not None, "the first part of a call has its id and name"
            assert call.name is not None
            yield from self._close("completed")
            self._open_call_index = call.call_index
            self._open = GrowingCall(len(self._output), call_id=call.call_id, name=call.name)
            yield from self._open.opened()
        if call.arguments:
            assert isinstance(self._open, GrowingCall)
            yield self._open.grown(call.arguments)

    def _begin(self, kind: type[GrowingMessage] | type[GrowingReasoning]) -> list[Event]:
        """Make an item of this kind the open one."""
        if isinstance(self._open, kind):
            return []
        events = self._close("completed")
        self._open = kind(len(self._output))
        return events + self._open.opened()

    def _close(self, status: ItemState) -> list[Event]:
        if self._open is None:
            return []
        events = self._open.closed(status)
        self._output.append(self._open.item(status))
        self._open = None
        return events

    def _close_last(self) -> list[Event]:
        """An answer without a word is a message without text."""
        events = [] if self._open or self._output else self._begin(GrowingMessage)
        return events + self._close(self._end_status)

    def _response(
        self,
        status: Literal["in_progress", "completed", "incomplete", "failed"],
        *,
        usage: Usage | None = None,
        failure: ResponseFailure | None = None,
    ) -> ResponseObject:
        is_cut = status == "incomplete"
        return ResponseObject(
            **self._head,
            **self._echo,
            status=status,
            output=self._output,
            usage=None if usage is None else ResponseUsage.of(usage),
            error=failure,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
        )

    def _written(self, events: Iterable[Event]) -> bytes:
        data = []
        for event in events:
            data.append(typed_event({**event, "sequence_number": self._num_events}))
            self._num_events += 1
        return b"".join(data)


def _echo(request: ResponseRequest, model: ServedModel) -> dict[str, Any]:
    """The request's fields as they were understood, defaults filled in."""
    defaults = model.config.defaults
    reasoning, text = request.reasoning, request.text
    chosen = None if text is None else text.format
    choice = request.tool_choice or "auto"
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "temperature": defaults.temperature if request.temperature is None else request.temperature,
        "text": {"format": {"type": "text"} if chosen is None else _format_echo(chosen)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": defaults.top_p if request.top_p is None else request.top_p,
        "user": request.user,
    }


def _format_echo(chosen: TextFormat | JSONObjectFormat | JSONSchemaTextFormat) -> dict[str, Any]:
    written = chosen.model_dump(by_alias=True, exclude_none=True)
    if isinstance(chosen, JSONSchemaTextFormat):
        written["schema"] = orjson.Fragment(chosen.json_schema)
    return written
