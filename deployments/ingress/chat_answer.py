"""Chat completions on the wire: `chat.completion.chunk` events and the whole `chat.completion`.

An event with text alone, nearly all of them, is three byte strings: what comes before the text,
the text as JSON, what comes after.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import orjson

from cluster.errors import ServingError
from cluster.openai_schema.chat import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChoiceLogprobs,
)
from cluster.openai_schema.usage import Usage
from cluster.types import FinishReason
from deployments.ingress.answer import DONE, error_event, event, unix_time
from deployments.ingress.choice import Piece, TokenEntry
from deployments.ingress.logprobs import chat_logprobs
from deployments.ingress.served_model import ServedModel

_TEXT_MARK = "\x00text\x00"


class ChatAnswer:
    """See `Answer`."""

    def __init__(self, answer_id: str, model: ServedModel, request: ChatCompletionRequest) -> None:
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
        self._texts: list[list[str]] = [[] for _ in self._frames]
        self._entries: list[list[TokenEntry]] = [[] for _ in self._frames]
        self._finish_reasons: list[FinishReason | None] = [None] * len(self._frames)

    def opening(self) -> bytes:
        return b"".join(
            self._chunk(index, {"role": "assistant", "content": ""})
            for index in range(len(self._frames))
        )

    def chunk(self, piece: Piece) -> bytes:
        data = b""
        if piece.entries:
            logprobs = self._logprobs(piece.entries)
            data = self._chunk(piece.choice_index, {"content": piece.text}, logprobs=logprobs)
        elif piece.text:
            before, after = self._frames[piece.choice_index]
            data = before + orjson.dumps(piece.text) + after
        if piece.finish_reason is not None:
            data += self._chunk(piece.choice_index, {}, finish_reason=piece.finish_reason)
        return data

    def closing(self, usage: Usage) -> bytes:
        if not self._has_usage:
            return DONE
        return event({**self._head, "choices": [], "usage": usage.model_dump()}) + DONE

    def failure(self, error: ServingError) -> bytes:
        return error_event(error)

    def add(self, piece: Piece) -> None:
        self._texts[piece.choice_index].append(piece.text)
        self._entries[piece.choice_index].extend(piece.entries)
        self._finish_reasons[piece.choice_index] = piece.finish_reason

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
        return ChatChoice(
            index=index,
            message=AnswerMessage(content="".join(self._texts[index])),
            logprobs=self._logprobs(self._entries[index]),
            finish_reason=cast("Literal['stop', 'length']", str(self._finish_reasons[index])),
        )

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChoiceLogprobs | None:
        if self._num_top_logprobs is None:
            return None
        return ChoiceLogprobs(
            content=chat_logprobs(self._model.tokenizer, entries, self._num_top_logprobs)
        )

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        *,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: FinishReason | None = None,
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
