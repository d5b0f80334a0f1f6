"""Anthropic's `POST …/v1/messages` and `…/count_tokens`, on the chat machinery.

Paths of theirs have their errors too: see `speaks_anthropic`.
"""

from functools import partial

from starlette.types import Receive, Scope, Send

from cluster.anthropic_schema.message import TokenCount
from cluster.anthropic_schema.request import CountTokensRequest, MessageRequest
from cluster.errors import BadRequestError
from cluster.openai_schema.validation import parse_request
from deployments.ingress.answer import new_id
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.message_answer import MessageAnswer
from deployments.ingress.message_translation import chat_of_message
from deployments.ingress.request_body import read_json
from deployments.ingress.responses import unless_client_leaves
from deployments.ingress.served_model import ServedModel

ROUTE = "/v1/messages"
COUNT_ROUTE = "/v1/messages/count_tokens"
# The newer one refuses sampling fields; here they work under both.
VERSIONS = (b"2023-06-01", b"2026-10-21")


def speaks_anthropic(path: str) -> bool:
    """Whether a path, known or not, is one of Anthropic's API."""
    is_messages = path == ROUTE or path.startswith(f"{ROUTE}/")
    return is_messages or path.startswith("/v2/ai/anthropic/")


class Messages:
    """The endpoint, an ASGI app."""

    def __init__(self, generations: ChatGenerations, *, max_body_bytes: int) -> None:
        self._generations = generations
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = ROUTE
        _check_version(scope)
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(MessageRequest, body)
        model = self._generations.find_model(request.model, exchange)
        await unless_client_leaves(receive, self._answer(request, model, send, exchange))

    async def _answer(
        self, request: MessageRequest, model: ServedModel, send: Send, exchange: Exchange
    ) -> None:
        exchange.answer_id = new_id("msg", separator="_")
        make_answer = partial(MessageAnswer, exchange.answer_id, model)
        await chat_of_message(request).answer(self._generations, model, make_answer, send, exchange)


class CountTokens:
    """The endpoint, an ASGI app."""

    def __init__(self, generations: ChatGenerations, *, max_body_bytes: int) -> None:
        self._generations = generations
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = COUNT_ROUTE
        _check_version(scope)
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(CountTokensRequest, body)
        model = self._generations.find_model(request.model, exchange)
        chat, names = chat_of_message(request)
        with names.in_errors():
            prompt = await self._generations.prompt(chat, model)
        count = TokenCount(input_tokens=len(prompt.token_ids))
        await send_json(send, count.model_dump_json().encode())


def _check_version(scope: Scope) -> None:
    """Betas are switched on by fields, which are checked; their header needs no check."""
    header = b"anthropic-version"
    given = next((value for name, value in scope["headers"] if name == header), VERSIONS[0])
    if given not in VERSIONS:
        allowed = " or ".join(version.decode() for version in VERSIONS)
        shown = given.decode("latin-1")[:40]
        raise BadRequestError(f"anthropic-version must be {allowed}; given {shown!r}")
