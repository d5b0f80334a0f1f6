"""Plain completions on the wire: `text_completion` objects, streamed or whole, prompts echoed."""

from collections.abc import Sequence
from typing import Literal, cast

import orjson

from cluster.errors import ServingError
from cluster.openai_schema.completions import (
    CompletionRequest,
    LegacyLogprobs,
    TextChoice,
    TextCompletion,
)
from cluster.openai_schema.usage import Usage
from cluster.types import FinishReason
from deployments.ingress.answer import DONE, error_event, event, unix_time
from deployments.ingress.choice import Piece
from deployments.ingress.generation import Generation
from deployments.ingress.logprobs import joined, legacy_logprobs, legacy_prompt_logprobs
from deployments.ingress.prompts import TokenizedPrompt
from deployments.ingress.served_model import ServedModel


class CompletionAnswer:
    """See `Answer`."""

    def __init__(
        self,
        answer_id: str,
        model: ServedModel,
        request: CompletionRequest,
        prompts: Sequence[TokenizedPrompt],
        generation: Generation,
    ) -> None:
        self._model = model
        self._request = request
        self._prompts = prompts
        self._generation = generation
        self._head: dict[str, object] = {
            "id": answer_id,
            "object": "text_completion",
            "created": unix_time(),
            "model": model.name,
        }
        num_choices = len(prompts) * request.num_choices
        self._echoes = [self._echo_text(prompt) for prompt in prompts] if request.echo else None
        self._has_begun = [False] * num_choices
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._logprobs: list[LegacyLogprobs | None] = [None] * num_choices
        self._finish_reasons: list[FinishReason | None] = [None] * num_choices

    def opening(self) -> bytes:
        return b""

    def chunk(self, piece: Piece) -> bytes:
        text, logprobs = self._with_echo(piece)
        if not text and logprobs is None and piece.finish_reason is None:
            return b""
        choice = {
            "index": piece.choice_index,
            "text": text,
            "logprobs": None if logprobs is None else logprobs.model_dump(),
            "finish_reason": piece.finish_reason,
        }
        value = {**self._head, "choices": [choice]}
        if self._request.wants_usage_chunk:
            value["usage"] = None
        return event(value)

    def closing(self, usage: Usage) -> bytes:
        if not self._request.wants_usage_chunk:
            return DONE
        usage_of_answer = self._visible(usage).model_dump()
        return event({**self._head, "choices": [], "usage": usage_of_answer}) + DONE

    def failure(self, error: ServingError) -> bytes:
        return error_event(error)

    def add(self, piece: Piece) -> None:
        index = piece.choice_index
        text, logprobs = self._with_echo(piece)
        self._texts[index].append(text)
        if logprobs is not None:
            self._logprobs[index] = joined(self._logprobs[index], logprobs)
        self._finish_reasons[index] = piece.finish_reason

    def whole(self, usage: Usage) -> bytes:
        completion = TextCompletion(
            id=cast("str", self._head["id"]),
            created=cast("int", self._head["created"]),
            model=self._model.name,
            choices=[
                TextChoice(
                    index=index,
                    text="".join(texts),
                    logprobs=self._logprobs[index],
                    finish_reason=cast("Literal['stop', 'length']", str(reason)),
                )
                for index, (texts, reason) in enumerate(
                    zip(self._texts, self._finish_reasons, strict=True)
                )
            ],
            usage=self._visible(usage),
        )
        return orjson.dumps(completion.model_dump())

    def _with_echo(self, piece: Piece) -> tuple[str, LegacyLogprobs | None]:
        """The text and logprobs of a piece, after those of the prompt if it is the first."""
        index = piece.choice_index
        position = index // self._request.num_choices
        text, logprobs = self._generated(piece, position)
        if self._echoes is not None and not self._has_begun[index]:
            text = self._echoes[position] + text
            echoed = self._echo_logprobs(position)
            if echoed is not None:
                logprobs = echoed if logprobs is None else joined(echoed, logprobs)
        self._has_begun[index] = True
        return text, logprobs

    def _generated(self, piece: Piece, position: int) -> tuple[str, LegacyLogprobs | None]:
        if self._request.max_tokens == 0:
            return "", None  # the engine must make one token to score a prompt
        if not piece.entries:
            return piece.text, None
        assert self._request.logprobs is not None
        offset = 0 if self._echoes is None else len(self._echoes[position])
        logprobs = legacy_logprobs(
            self._model.tokenizer, piece.entries, self._request.logprobs, first_offset=offset
        )
        return piece.text, logprobs

    def _echo_text(self, prompt: TokenizedPrompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._model.tokenizer.decode(prompt.token_ids, skip_special_tokens=True)

    def _echo_logprobs(self, position: int) -> LegacyLogprobs | None:
        logprobs = self._generation.prompt_logprobs[position]
        if logprobs is None or self._request.logprobs is None:
            return None
        token_ids = self._prompts[position].token_ids
        return legacy_prompt_logprobs(
            self._model.tokenizer, token_ids, logprobs, self._request.logprobs
        )

    def _visible(self, usage: Usage) -> Usage:
        if self._request.max_tokens != 0:
            return usage
        return Usage.of(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=0,
            cached_tokens=usage.prompt_tokens_details.cached_tokens,
        )
