"""`POST …/tokenize` and `…/detokenize`: what a model reads, without running it."""

from starlette.types import Receive, Scope, Send

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.tokenization import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeChatRequest,
    TokenizePromptRequest,
)
from cluster.openai_schema.validation import parse_request
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.prompts import PromptBuilder
from deployments.ingress.request_body import read_json
from deployments.ingress.served_model import ServedModel

TOKENIZE_ROUTE = "/v1/tokenize"
DETOKENIZE_ROUTE = "/v1/detokenize"


class Tokenize:
    """The endpoint, an ASGI app. A body with `messages` is a chat, any other a text."""

    def __init__(
        self, generations: ChatGenerations, prompts: PromptBuilder, *, max_body_bytes: int
    ) -> None:
        self._generations = generations
        self._prompts = prompts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = TOKENIZE_ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        if isinstance(body, dict) and "messages" in body:
            answer = await self._chat(parse_request(TokenizeChatRequest, body), exchange)
        else:
            answer = await self._text(parse_request(TokenizePromptRequest, body), exchange)
        await send_json(send, answer.model_dump_json().encode())

    async def _text(self, request: TokenizePromptRequest, exchange: Exchange) -> TokenizeAnswer:
        model = self._generations.find_model(request.model, exchange)
        token_ids = await self._prompts.tokens(
            model, request.prompt, add_special_tokens=request.add_special_tokens is not False
        )
        return _answer(model, token_ids, has_strings=bool(request.return_token_strs))

    async def _chat(self, request: TokenizeChatRequest, exchange: Exchange) -> TokenizeAnswer:
        model = self._generations.find_model(request.model, exchange)
        chat = ChatCompletionRequest(
            messages=request.messages,
            tools=request.tools,
            enable_thinking=request.enable_thinking,
            reasoning_effort=request.reasoning_effort,
        )
        if chat.retrieval_tools:
            message = "nothing is searched here: what retrieval would find is not counted"
            loc = ("tools", chat.retrieval_tools[0][0], "type")
            raise ValidationError([FieldProblem(loc=loc, message=message)])
        prompt = await self._generations.prompt(
            chat,
            model,
            add_generation_prompt=request.add_generation_prompt is not False,
            add_special_tokens=bool(request.add_special_tokens),
        )
        return _answer(model, prompt.token_ids, has_strings=bool(request.return_token_strs))


class Detokenize:
    """The endpoint, an ASGI app. Special tokens are written out."""

    def __init__(
        self, generations: ChatGenerations, prompts: PromptBuilder, *, max_body_bytes: int
    ) -> None:
        self._generations = generations
        self._prompts = prompts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = DETOKENIZE_ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(DetokenizeRequest, body)
        model = self._generations.find_model(request.model, exchange)
        largest = max(request.tokens, default=0)
        if largest >= model.vocab_size:
            message = f"token ids must be below {model.vocab_size}; given {largest}"
            raise ValidationError([FieldProblem(loc=("tokens",), message=message)])
        text = await self._prompts.text(model, request.tokens)
        await send_json(send, DetokenizeAnswer(prompt=text).model_dump_json().encode())


def _answer(model: ServedModel, token_ids: list[int], *, has_strings: bool) -> TokenizeAnswer:
    strings = [model.tokenizer.token(token_id) for token_id in token_ids] if has_strings else None
    return TokenizeAnswer(
        count=len(token_ids),
        max_model_len=model.max_model_len,
        tokens=token_ids,
        token_strs=strings,
    )
