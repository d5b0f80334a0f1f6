"""A provider's answer, made ours: the model's name that the client sent, our id, what was found.

What we do not know of is left as it is. What contradicts the protocol is an error: a client's
reader would fail on it in a way that nobody understands.
"""

from typing import Any

import orjson

from cluster.errors import ServingError
from cluster.openai_schema.chat import ChatCompletionRequest, RetrievalSources
from deployments.ingress.answer import DONE, unix_time
from deployments.ingress.exchange import Exchange
from deployments.ingress.providers.event_reader import EventReader, EventTooLargeError
from deployments.ingress.providers.provider_errors import (
    ProviderAnswerError,
    ProviderDownError,
    ProviderWords,
)

_END = b"[DONE]"
_REASONS = frozenset(("stop", "length", "tool_calls", "content_filter", "function_call"))
_MAX_TOKENS = 10**9  # a count beyond it is none

Json = dict[str, Any]


class ProviderAnswer:
    """Streamed: `feed` until `is_finished`. Whole: `whole`."""

    def __init__(
        self,
        request: ChatCompletionRequest,
        exchange: Exchange,
        words: ProviderWords,
        *,
        sources: RetrievalSources | None,
    ) -> None:
        assert request.model is not None, "a provider is found by a model's name"
        self._head = {
            "id": exchange.answer_id,
            "created": unix_time(),
            "model": request.model,
        }
        self._exchange = exchange
        self._words = words
        self._num_choices = request.num_choices
        self._wants_usage = request.wants_usage_chunk
        self._sources = None if sources is None else sources.model_dump()
        self._reader = EventReader()
        self._open = set(range(self._num_choices))
        #: Tokens of the prompt and of the answer, as the provider counts them.
        self.num_tokens = (0, 0)
        self.is_finished = False

    def feed(self, data: bytes) -> bytes:
        """The events to send for a chunk of the provider's.

        Raises:
            ServingError: it is no event, or says that the provider failed.
        """
        try:
            events = self._reader.feed(data)
        except EventTooLargeError as error:
            raise ProviderAnswerError(f"{self._words.name}: {error}") from None
        written = []
        for item in events:
            if item == _END:
                self.is_finished = True
                written.append(DONE)
                break
            written.append(self._rewritten(item))
        return b"".join(written)

    def end(self) -> bytes:
        """What is still to send when the provider's stream has ended by itself.

        Raises:
            ProviderDownError: it was not complete.
        """
        if self.is_finished:
            return b""
        if self._open:
            raise ProviderDownError(f"{self._words.name} ended its answer before its end.")
        self.is_finished = True
        return DONE

    def whole(self, data: bytes) -> bytes:
        """The body to send for the provider's.

        Raises:
            ServingError: it is no answer.
        """
        completion = self._object(data)
        choices = self._choices(completion)
        if not choices:
            raise self._strange("an answer without choices")
        for choice in choices:
            self._note_finish(choice)
            message = choice.get("message")
            if not isinstance(message, dict):
                raise self._strange("a choice without a message")
            if self._sources is not None:
                message["retrieval"] = self._sources
        self._note_usage(completion)
        return self._encoded({**completion, **self._head, "object": "chat.completion"})

    def _rewritten(self, data: bytes) -> bytes:
        """b"" for a chunk that the client has not asked for."""
        chunk = self._object(data)
        choices = self._choices(chunk)
        self._note_usage(chunk)
        if not self._wants_usage:
            chunk.pop("usage", None)
            if not choices:
                return b""
        for choice in choices:
            if not isinstance(choice.get("delta"), dict):
                raise self._strange("a choice without a delta")
            self._note_finish(choice)
            if self._sources is not None and choice.get("finish_reason") is not None:
                choice["delta"]["retrieval"] = self._sources
        chunk.update(self._head, object="chat.completion.chunk")
        return b"data: " + self._encoded(chunk) + b"\n\n"

    def _object(self, data: bytes) -> Json:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise self._strange("what is not JSON") from None
        if not isinstance(value, dict):
            raise self._strange("JSON that is no object")
        if value.get("error") is not None and not value.get("choices"):
            raise self._words.midway(value["error"])
        return value

    def _encoded(self, value: Json) -> bytes:
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError:  # it reads deeper than it writes
            raise self._strange("what is nested too deeply") from None

    def _choices(self, value: Json) -> list[Json]:
        choices = value.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise self._strange("an answer without choices")
        for choice in choices:
            index = choice.get("index", 0)
            if not isinstance(index, int) or not 0 <= index < self._num_choices:
                raise self._strange("a choice that nobody asked for")
        return choices

    def _note_finish(self, choice: Json) -> None:
        reason = choice.get("finish_reason")
        if reason is None:
            return
        self._open.discard(choice.get("index", 0))
        # A label of metrics: never a word of somebody else's invention.
        self._exchange.finish_reason = (
            reason if isinstance(reason, str) and reason in _REASONS else "other"
        )

    def _note_usage(self, value: Json) -> None:
        usage = value.get("usage")
        if not isinstance(usage, dict):
            return
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        prompt, completion = (
            count if isinstance(count, int) and 0 <= count <= _MAX_TOKENS else 0 for count in counts
        )
        self.num_tokens = (prompt, completion)

    def _strange(self, what: str) -> ServingError:
        return ProviderAnswerError(f"{self._words.name} sends {what}.")
