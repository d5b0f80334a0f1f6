"""`POST …/completions`: plain texts or token ids, one request to the pool per prompt."""

from collections.abc import Sequence

from starlette.types import Receive, Scope, Send

from cluster.openai_schema.completions import CompletionRequest
from cluster.openai_schema.validation import parse_request
from cluster.telemetry import Telemetry
from cluster.types import Request
from deployments.ingress.answer import new_id
from deployments.ingress.choice import TextRules
from deployments.ingress.completion_answer import CompletionAnswer
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.generation import Generation
from deployments.ingress.prompts import PromptBuilder, TokenizedPrompt
from deployments.ingress.request_body import read_json
from deployments.ingress.responses import send_stream, send_whole, unless_client_leaves
from deployments.ingress.sampling import output_limit, sampling_params
from deployments.ingress.served_model import ModelDirectory, ServedModel
from deployments.ingress.unavailable import refuse_unavailable_completion

ROUTE = "/v1/completions"
DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this endpoint only


class Completions:
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
        request = parse_request(CompletionRequest, body)
        model = self._models.find(request.model, exchange.meter.limits)
        exchange.model = model.name
        await unless_client_leaves(receive, self._answer(request, model, send, exchange))

    async def _answer(
        self, request: CompletionRequest, model: ServedModel, send: Send, exchange: Exchange
    ) -> None:
        refuse_unavailable_completion(request)
        prompts = await self._prompts.completion(model, request.prompt)
        exchange.answer_id = new_id("cmpl")
        requests = _engine_requests(request, model, prompts, exchange)
        generation = Generation(
            model,
            requests,
            TextRules(
                stop_strings=request.stop or (),
                min_tokens=request.min_tokens or 0,
                has_logprobs=request.logprobs is not None,
                continues_text=True,
            ),
            metrics=self._telemetry.model(model.name),
            exchange=exchange,
            grammar_loc=None if request.guide is None else request.guide.loc,
            num_returned=request.num_choices,
        )
        answer = CompletionAnswer(exchange.answer_id, model, request, prompts, generation)
        send_answer = send_stream if request.stream else send_whole
        await send_answer(generation, answer, send, exchange)


def _engine_requests(
    request: CompletionRequest,
    model: ServedModel,
    prompts: Sequence[TokenizedPrompt],
    exchange: Exchange,
) -> list[Request]:
    answer_id = exchange.answer_id
    is_scored = bool(request.echo) and request.logprobs is not None
    return [
        Request(
            request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{position}",
            prompt_token_ids=prompt.token_ids,
            sampling_params=sampling_params(
                request,
                model,
                max_tokens=_max_tokens(request, model, len(prompt.token_ids)),
                logprobs=request.logprobs,
                prompt_logprobs=request.logprobs if is_scored else None,
            ),
            priority=exchange.priority,
            tenant=exchange.tenant,
            http_request_id=exchange.request_id,
            adapter=model.adapter,
        )
        for position, prompt in enumerate(prompts)
    ]


def _max_tokens(request: CompletionRequest, model: ServedModel, num_prompt_tokens: int) -> int:
    requested = None if request.max_tokens is None else max(request.max_tokens, 1)
    limit = output_limit(
        requested, num_prompt_tokens=num_prompt_tokens, model=model, prompt_field="prompt"
    )
    return min(limit, DEFAULT_MAX_TOKENS) if requested is None else limit
