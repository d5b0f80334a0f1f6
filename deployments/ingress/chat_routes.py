"""`POST …/chat/completions`: from the body to a running answer."""

from starlette.types import Receive, Scope, Send

from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.validation import parse_request
from deployments.ingress.answer import new_id
from deployments.ingress.chat_answer import ChatAnswer
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.providers.external_chat import ExternalChat
from deployments.ingress.request_body import read_json
from deployments.ingress.responses import send_stream, send_whole, unless_client_leaves
from deployments.ingress.served_model import ServedModel

ROUTE = "/v1/chat/completions"


class ChatCompletions:
    """The endpoint, an ASGI app."""

    def __init__(
        self,
        generations: ChatGenerations,
        *,
        max_body_bytes: int,
        external: ExternalChat | None = None,
    ) -> None:
        """`external`: for models of providers; None: there are none."""
        self._generations = generations
        self._external = external
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(ChatCompletionRequest, body)
        outside = None if self._external is None else self._external.find(request.model)
        if self._external is not None and outside is not None:
            work = self._external.answer(request, outside, send, exchange)
            await unless_client_leaves(receive, work)
            return
        model = self._generations.find_model(request.model, exchange)
        await unless_client_leaves(receive, self._answer(request, model, send, exchange))

    async def _answer(
        self, request: ChatCompletionRequest, model: ServedModel, send: Send, exchange: Exchange
    ) -> None:
        exchange.answer_id = new_id("chatcmpl")
        grounded = await self._generations.ground(request, model, exchange)
        generation = await self._generations.start(request, model, exchange, prompt=grounded.prompt)
        answer = ChatAnswer(exchange.answer_id, model, request, chunks=grounded.chunks)
        send_answer = send_stream if request.stream else send_whole
        await send_answer(generation, answer, send, exchange)
