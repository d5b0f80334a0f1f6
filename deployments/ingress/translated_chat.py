"""A chat request translated from another endpoint's: checked and answered in that one's words."""

from collections.abc import Callable
from typing import NamedTuple, Self

from starlette.types import Send

from cluster.errors import ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from deployments.ingress.answer import Answer
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.exchange import Exchange
from deployments.ingress.field_names import FieldNames
from deployments.ingress.generation import Generation
from deployments.ingress.responses import send_stream, send_whole
from deployments.ingress.served_model import ServedModel


class TranslatedChat(NamedTuple):
    """The chat request, and how to speak of it to the client."""

    chat: ChatCompletionRequest
    names: FieldNames

    @classmethod
    def checked(cls, chat: ChatCompletionRequest, names: FieldNames) -> Self:
        """
        Raises:
            ValidationError: fields contradict each other.
        """
        with names.in_errors():
            problems = chat.problems()
            if problems:
                raise ValidationError(problems)
        return cls(chat, names)

    async def answer(
        self,
        generations: ChatGenerations,
        model: ServedModel,
        make_answer: Callable[[Generation], Answer],
        send: Send,
        exchange: Exchange,
    ) -> None:
        """Generate, and send what is generated in the form of `make_answer`."""
        send_answer = send_stream if self.chat.stream else send_whole
        with self.names.in_errors():
            generation = await generations.start(self.chat, model, exchange)
            await send_answer(generation, make_answer(generation), send, exchange)
