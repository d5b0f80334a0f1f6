"""Retrieval for a chat request: what to search for, and as much of it as the context has room for.

The user's own messages are never cut: chunks give way, the worst first. Those that stay are put in
a stable order (bucket, file, place in the file), so that equal finds make equal prompts, whose KV
blocks are shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cluster.config import RetrievalConfig
from cluster.errors import BadRequestError, FieldProblem, NotFoundError, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.tools import RetrievalOptions
from cluster.retrieval import Retriever
from cluster.types import BucketRef, FoundChunk
from deployments.ingress.prompts import PromptBuilder, TokenizedPrompt, template_message
from deployments.ingress.served_model import ServedModel
from deployments.ingress.unavailable import KIND
from deployments.work_group import collect
from models.chat_template import ChatTemplate, RenderError

# Of a request that sets no limit, this much is kept for the answer: a quarter, or so many tokens.
ANSWER_SHARE = 4
ANSWER_TOKENS = 1024
CHUNK_OVERHEAD_TOKENS = 16  # number, line breaks
# A long message is searched for by its two ends: the question is mostly at one of them.
MAX_QUERY_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundedPrompt:
    """A prompt, and the chunks in it, in the order in which the model reads them."""

    prompt: TokenizedPrompt
    chunks: tuple[FoundChunk, ...] = ()


class Grounding:
    """Searches for chat requests and fits what is found into their prompts."""

    def __init__(
        self, retriever: Retriever | None, prompts: PromptBuilder, config: RetrievalConfig
    ) -> None:
        """`retriever`: None where the configuration switches retrieval off."""
        self._retriever = retriever
        self._prompts = prompts
        self._config = config

    async def search(self, request: ChatCompletionRequest, tenant: str) -> list[FoundChunk]:
        """What the request's retrieval tools find, best first; [] without such tools.

        Raises:
            ValidationError: retrieval is switched off.
            NotFoundError: a bucket does not exist or was never embedded.
            ServiceUnavailableError: it cannot be searched now.
        """
        tools = request.retrieval_tools
        if not tools:
            return []
        if self._retriever is None:
            message = "retrieval is switched off here: the configuration has no embedders"
            loc = ("tools", tools[0][0], "type")
            raise ValidationError([FieldProblem(loc=loc, message=message, kind=KIND)])
        queries = search_queries(request)
        found = await collect(
            self._search_one(self._retriever, position, options, queries, tenant)
            for position, options in tools
        )
        return _interleaved(found)

    async def fit(
        self,
        request: ChatCompletionRequest,
        model: ServedModel,
        template: ChatTemplate,
        found: Sequence[FoundChunk],
    ) -> GroundedPrompt:
        """The prompt with as many of the chunks as there is room for.

        Raises:
            BadRequestError: there is not room for a single one, or the template refuses.
            ValidationError: see `PromptBuilder.chat`.
        """
        plain = await self._prompts.chat(model, template, request)
        if not found:
            return GroundedPrompt(prompt=plain)
        room = _room(request, model, len(plain.token_ids))
        texts = [f"{one.bucket}/{one.filename}\n{one.chunk.text}" for one in found]
        counts = await self._prompts.token_counts(model, texts)
        sizes = [count + CHUNK_OVERHEAD_TOKENS for count in counts]
        kept = _fitting(found, sizes, room)
        limit = len(plain.token_ids) + room
        while kept:
            chunks = tuple(sorted(kept, key=lambda one: (one.bucket, one.filename, one.position)))
            context = _render(model, chunks)
            prompt = await self._prompts.chat(model, template, request, context=context)
            if len(prompt.token_ids) <= limit:
                return GroundedPrompt(prompt=prompt, chunks=chunks)
            kept = kept[:-1]  # tokens do not quite add up: one less
        raise BadRequestError(
            f"The messages have {len(plain.token_ids)} tokens and "
            f"{_answer_tokens(request, model)} are kept for the answer; of the model's context of "
            f"{model.max_model_len} tokens that leaves {max(room, 0)} for retrieval, and the "
            f"smallest chunk that was found needs {min(sizes)}.",
            param="messages",
            openai_code="context_length_exceeded",
        )

    async def _search_one(
        self,
        retriever: Retriever,
        position: int,
        options: RetrievalOptions,
        queries: Sequence[str],
        tenant: str,
    ) -> list[FoundChunk]:
        names = dict.fromkeys(options.bucket_ids)
        try:
            return await retriever.search(
                [BucketRef(tenant=tenant, name=name) for name in names],
                queries,
                max_results=options.max_num_results or self._config.default_num_results,
            )
        except NotFoundError as error:
            param = f"tools.{position}.retrieval.bucket_ids"
            raise NotFoundError(error.detail, param=param) from error


def search_queries(request: ChatCompletionRequest) -> list[str]:
    """What to search for: the user's last message, and, where they have said something before, the
    last two together: "and for the other one?" means nothing by itself."""
    texts = [
        str(template_message(message, position).get("content", ""))
        for position, message in enumerate(request.messages)
        if message.role == "user"
    ]
    if not any(texts):  # only system or assistant messages: the last that says something
        every = [template_message(m, i).get("content", "") for i, m in enumerate(request.messages)]
        texts = [text for text in every if text][-1:]
    texts = [_ends(text) for text in texts if text.strip()]
    if not texts:
        raise ValidationError.of("messages", "have no text to search for")
    if len(texts) == 1:
        return texts
    return [texts[-1], f"{texts[-2]}\n{texts[-1]}"]


def _ends(text: str) -> str:
    if len(text) <= MAX_QUERY_CHARS:
        return text
    half = MAX_QUERY_CHARS // 2
    return f"{text[:half]}\n{text[-half:]}"


def _interleaved(lists: Sequence[Sequence[FoundChunk]]) -> list[FoundChunk]:
    """Rank by rank, each chunk once."""
    found: dict[tuple[str, str, int], FoundChunk] = {}
    for rank in range(max(map(len, lists))):
        for one in (results[rank] for results in lists if rank < len(results)):
            found.setdefault((one.bucket, one.filename, one.position), one)
    return list(found.values())


def _answer_tokens(request: ChatCompletionRequest, model: ServedModel) -> int:
    if request.token_limit is not None:
        return request.token_limit
    wanted = model.config.defaults.max_tokens or ANSWER_TOKENS
    return min(wanted, model.max_model_len // ANSWER_SHARE)


def _room(request: ChatCompletionRequest, model: ServedModel, num_prompt_tokens: int) -> int:
    return model.max_model_len - num_prompt_tokens - _answer_tokens(request, model)


def _fitting(found: Sequence[FoundChunk], sizes: Sequence[int], room: int) -> list[FoundChunk]:
    kept = []
    for one, size in zip(found, sizes, strict=True):
        if size <= room:
            kept.append(one)
            room -= size
    return kept


def _render(model: ServedModel, chunks: Sequence[FoundChunk]) -> str:
    try:
        return model.context_template.render([_as_plain_text(model, one) for one in chunks])
    except RenderError as error:
        raise BadRequestError(f"The model's retrieval template failed: {error}") from error


def _as_plain_text(model: ServedModel, found: FoundChunk) -> FoundChunk:
    """Files may come from anywhere: none of their words is to be read as the template's."""
    plain = model.tokenizer.as_plain_text
    chunk = msgspec.structs.replace(
        found.chunk, text=plain(found.chunk.text), heading=plain(found.chunk.heading)
    )
    return msgspec.structs.replace(found, filename=plain(found.filename), chunk=chunk)
