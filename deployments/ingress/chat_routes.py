"""`POST …/chat/completions`: from the body to a running answer."""

from starlette.types import Receive, Scope, Send

from cluster.errors import BadRequestError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.validation import parse_request
from cluster.telemetry import Telemetry
from cluster.types import Request
from deployments.ingress.answer import new_id
from deployments.ingress.chat_answer import ChatAnswer
from deployments.ingress.choice import TextRules
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.generation import Generation
from deployments.ingress.prompts import PromptBuilder
from deployments.ingress.request_body import read_json
from deployments.ingress.responses import send_stream, send_whole, unless_client_leaves
from deployments.ingress.sampling import output_limit, sampling_params
from deployments.ingress.served_model import ModelDirectory, ServedModel
from deployments.ingress.unavailable import refuse_unavailable_chat
from models.chat_template import ChatTemplate

ROUTE = "/v1/chat/completions"


class ChatCompletions:
    """The endpoint, an ASGI app."""

    def __init__(
        self,
        models: ModelDirectory,
        prompts: PromptBuilder,
        telemetry: Telemetry,
        *,
        max_body_bytes: int,
    ) -> None:
        self._models = models
        self._prompts = prompts
        self._telemetry = telemetry
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(ChatCompletionRequest, body)
        model = self._models.find(request.model)
        exchange.model = model.name
        await unless_client_leaves(receive, self._answer(request, model, send, exchange))

    async def _answer(
        self, request: ChatCompletionRequest, model: ServedModel, send: Send, exchange: Exchange
    ) -> None:
        template = _template_of(model)
        refuse_unavailable_chat(request, template)
        prompt = await self._prompts.chat(model, template, request)
        exchange.request_id = new_id("chatcmpl")
        max_tokens = output_limit(
            request.token_limit,
            num_prompt_tokens=len(prompt.token_ids),
            model=model,
            prompt_field="messages",
        )
        params = sampling_params(
            request, model, max_tokens=max_tokens, logprobs=request.num_top_logprobs
        )
        generation = Generation(
            model,
            [
                Request(
                    request_id=exchange.request_id,
                    prompt_token_ids=prompt.token_ids,
                    sampling_params=params,
                )
            ],
            TextRules(
                stop_strings=request.stop or (),
                min_tokens=params.min_tokens,
                has_logprobs=params.logprobs is not None,
            ),
            metrics=self._telemetry.model(model.name),
            started_s=exchange.started_s,
        )
        answer = ChatAnswer(exchange.request_id, model, request)
        send_answer = send_stream if request.stream else send_whole
        await send_answer(generation, answer, send, exchange)


def _template_of(model: ServedModel) -> ChatTemplate:
    if model.chat_template is None:
        raise BadRequestError(
            f"{model.name} has no chat template; it serves /v1/completions only.", param="model"
        )
    return model.chat_template
