"""From a checked chat request to its running generation, whichever endpoint it came through.

`/chat/completions`, `/responses` and `/messages` differ in how a request is written and how its
answer is; between the two there is only this.
"""

import asyncio
import time

import msgspec

from cluster.errors import BadRequestError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.telemetry import Telemetry
from cluster.tenant_config import KeyScope
from cluster.types import Request
from deployments.ingress.choice import TextRules
from deployments.ingress.deadline import bounded
from deployments.ingress.exchange import Exchange
from deployments.ingress.generation import Generation
from deployments.ingress.grounding import GroundedPrompt, Grounding
from deployments.ingress.output_plan import OutputPlan, SchemaCheck, plan_output
from deployments.ingress.prompts import LONG_TEXT_CHARS, PromptBuilder, TokenizedPrompt
from deployments.ingress.sampling import output_limit, sampling_params
from deployments.ingress.served_model import ModelDirectory, ServedModel
from deployments.ingress.unavailable import refuse_unavailable_chat
from models.chat_template import ChatTemplate


class ChatGenerations:
    """Starts chat requests."""

    def __init__(
        self,
        models: ModelDirectory,
        prompts: PromptBuilder,
        telemetry: Telemetry,
        grounding: Grounding,
    ) -> None:
        self._models = models
        self._prompts = prompts
        self._grounding = grounding
        self._telemetry = telemetry
        self._schema_check = SchemaCheck()

    def find_model(self, name: str | None, exchange: Exchange) -> ServedModel:
        """See `ModelDirectory.find`; the exchange learns the model's name."""
        model = self._models.find(name, exchange.meter.limits)
        exchange.model = model.name
        return model

    async def prompt(
        self,
        request: ChatCompletionRequest,
        model: ServedModel,
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
    ) -> TokenizedPrompt:
        """What the model would read, but for what retrieval would find.

        Raises as `PromptBuilder.chat` does.
        """
        template = _template_of(model)
        refuse_unavailable_chat(request, template)
        return await self._prompts.chat(
            model,
            template,
            request,
            add_generation_prompt=add_generation_prompt,
            add_special_tokens=add_special_tokens,
        )

    async def ground(
        self, request: ChatCompletionRequest, model: ServedModel, exchange: Exchange
    ) -> GroundedPrompt:
        """The prompt with what the request's retrieval tools find.

        Raises:
            as `Grounding` does; PermissionDeniedError: the key is not for buckets.
        """
        template = _template_of(model)
        refuse_unavailable_chat(request, template)
        if request.retrieval_tools:
            exchange.require(KeyScope.BUCKETS)
        started_s = time.perf_counter()
        searching = self._grounding.search(request, exchange.tenant)
        found = await bounded(exchange.deadline, searching)
        if request.retrieval_tools:
            self._telemetry.model(model.name).retrieval.observe(time.perf_counter() - started_s)
        return await self._grounding.fit(request, model, template, found)

    async def start(
        self,
        request: ChatCompletionRequest,
        model: ServedModel,
        exchange: Exchange,
        *,
        prompt: TokenizedPrompt | None = None,
    ) -> Generation:
        """A generation under `exchange.answer_id`; nothing runs before its pieces are asked for.

        Raises:
            ServingError: the request does not fit the model, or asks for what is not served.
        """
        assert exchange.answer_id, "the endpoint names its answer first"
        if prompt is None:
            prompt = await self.prompt(request, model)
        max_tokens = output_limit(
            request.token_limit,
            num_prompt_tokens=len(prompt.token_ids),
            model=model,
            prompt_field="messages",
        )
        plan = await self._plan(request, model, prompt)
        params = sampling_params(
            request, model, max_tokens=max_tokens, logprobs=request.num_top_logprobs
        )
        params = msgspec.structs.replace(params, grammar=plan.grammar)
        return Generation(
            model,
            [
                Request(
                    request_id=exchange.answer_id,
                    prompt_token_ids=prompt.token_ids,
                    sampling_params=params,
                    priority=exchange.priority,
                    tenant=exchange.tenant,
                    http_request_id=exchange.request_id,
                    adapter=model.adapter,
                )
            ],
            TextRules(
                stop_strings=request.stop or (),
                min_tokens=params.min_tokens,
                has_logprobs=request.num_top_logprobs is not None,
                output=plan.rules,
                shown_special_ids=plan.shown_special_ids,
            ),
            metrics=self._telemetry.model(model.name),
            exchange=exchange,
            grammar_loc=plan.grammar_loc,
            num_returned=request.num_choices,
        )

    async def _plan(
        self, request: ChatCompletionRequest, model: ServedModel, prompt: TokenizedPrompt
    ) -> OutputPlan:
        """Beside the event loop where many or long functions are to be checked."""
        arguments = (request, model, prompt, self._schema_check)
        if request.may_call_functions and len(prompt.text or "") > LONG_TEXT_CHARS:
            return await asyncio.to_thread(plan_output, *arguments)
        return plan_output(*arguments)


def _template_of(model: ServedModel) -> ChatTemplate:
    if model.chat_template is None:
        raise BadRequestError(
            f"{model.name} has no chat template; it serves /v1/completions only.", param="model"
        )
    return model.chat_template
