"""`POST …/responses`: OpenAI's Responses API without its memory, on the chat machinery."""

from starlette.types import Receive, Scope, Send

from cluster.openai_schema.response_request import ResponseRequest
from cluster.openai_schema.validation import parse_request
from deployments.ingress.answer import new_id
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.request_body import read_json
from deployments.ingress.response_answer import ResponseAnswer
from deployments.ingress.response_translation import chat_of_response
from deployments.ingress.responses import unless_client_leaves
from deployments.ingress.served_model import ServedModel

ROUTE = "/v1/responses"


class Responses:
    """The endpoint, an ASGI app."""

    def __init__(self, generations: ChatGenerations, *, max_body_bytes: int) -> None:
        self._generations = generations
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(ResponseRequest, body)
        model = self._generations.find_model(request.model, exchange)
        await unless_client_leaves(receive, self._answer(request, model, send, exchange))

    async def _answer(
        self, request: ResponseRequest, model: ServedModel, send: Send, exchange: Exchange
    ) -> None:
        exchange.answer_id = new_id("resp", separator="_")
        answer = ResponseAnswer(exchange.answer_id, model, request)
        await chat_of_response(request).answer(
            self._generations, model, lambda _: answer, send, exchange
        )
