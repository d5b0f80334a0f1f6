"""`POST …/embeddings` and `GET …/embeddings/models`: vectors of texts, as OpenAI's clients ask."""

import asyncio
import base64
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from cluster.errors import BadRequestError, FieldProblem, ValidationError
from cluster.openai_schema.embeddings import (
    EmbeddingInputs,
    EmbeddingModelList,
    EmbeddingModelObject,
    EmbeddingRequest,
)
from cluster.openai_schema.validation import parse_request
from cluster.retrieval import Embedder, Embeddings, InputKind
from cluster.telemetry import Telemetry
from cluster.tenants.limits import TenantLimits, allowed_names
from cluster.tenants.usage import UsageCounts
from deployments.ingress.answer import new_id, unix_time
from deployments.ingress.deadline import bounded
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.metering import tokens_in
from deployments.ingress.request_body import decode_json, read_body
from deployments.ingress.responses import unless_client_leaves
from deployments.ingress.served_model import OWNER, unknown_model

EMBEDDINGS_ROUTE = "/v1/embeddings"
EMBEDDING_MODELS_ROUTE = "/v1/embeddings/models"

# Beyond these sizes a thread reads the body, or writes the answer: 2 ms of the event loop's time.
_MAX_INLINE_BODY_BYTES = 65_536
_MAX_INLINE_NUMBERS = 32_768


def is_embeddings_request(body: object) -> bool:
    """Whether a body sent to `POST /v2/ai/embeddings` is OpenAI's: with that base URL the SDK's
    path is the one of "embed a bucket"."""
    return isinstance(body, dict) and "input" in body and "bucket_name" not in body


class OpenAIEmbeddings:
    """The endpoint, an ASGI app; `answer` is for a body that somebody else has read."""

    def __init__(
        self,
        embedders: Mapping[str, Embedder],
        telemetry: Telemetry,
        *,
        chat_model_names: Collection[str],
        max_body_bytes: int,
    ) -> None:
        """`embedders` by model name, the default one first; there may be none."""
        self._embedders = embedders
        self._telemetry = telemetry
        self._chat_model_names = chat_model_names
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = EMBEDDINGS_ROUTE
        body = await read_body(scope, receive, max_body_bytes=self._max_body_bytes)
        if len(body) <= _MAX_INLINE_BODY_BYTES:
            request = _parse(body)
        else:
            request = await asyncio.to_thread(_parse, body)
        await self._answer(request, scope, receive, send)

    async def answer(self, body: object, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a decoded body; see `is_embeddings_request`."""
        scope[SCOPE_KEY].route = EMBEDDINGS_ROUTE
        request = await asyncio.to_thread(parse_request, EmbeddingRequest, body)
        await self._answer(request, scope, receive, send)

    async def _answer(
        self, request: EmbeddingRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        name, embedder = self._find(request.model, exchange.meter.limits)
        exchange.model = name
        exchange.answer_id = new_id("embd")
        await unless_client_leaves(receive, self._embed(request, name, embedder, exchange, send))

    async def _embed(
        self,
        request: EmbeddingRequest,
        name: str,
        embedder: Embedder,
        exchange: Exchange,
        send: Send,
    ) -> None:
        if request.dimensions is not None:
            _check_dimensions(request.dimensions, (await embedder.facts()).width)
        used = UsageCounts(num_requests=1)
        estimate = _num_tokens_about(request.input)
        kind = InputKind.BULK if exchange.is_batch else InputKind.PLAIN
        async with exchange.meter.running(model=name, num_tokens=estimate, used=lambda: used):
            try:
                embedding = embedder.embed(request.input.items, kind=kind)
                embeddings = await bounded(exchange.deadline, embedding)
            except ValidationError as error:
                raise _placed(error, request.input) from None
            used = UsageCounts(num_requests=1, prompt_tokens=embeddings.num_tokens)
        self._telemetry.model(name).prompt_tokens += embeddings.num_tokens
        if embeddings.vectors_ND.size <= _MAX_INLINE_NUMBERS:
            body = _answer_body(request, name, embeddings)
        else:
            body = await asyncio.to_thread(_answer_body, request, name, embeddings)
        await send_json(send, body, headers=exchange.headers)

    def _find(self, name: str | None, limits: TenantLimits) -> tuple[str, Embedder]:
        """
        Raises:
            BadRequestError: it is a chat model.
            NotFoundError: there is no such model, or not for who has these limits.
        """
        known = allowed_names(self._embedders, limits)
        if name is None and self._embedders:
            name = next(iter(self._embedders))
        embedder = self._embedders.get(name or "")
        if name is not None and embedder is not None and name in known:
            return name, embedder
        if name in allowed_names(self._chat_model_names, limits):
            raise BadRequestError(
                f"The model {name!r} answers chats and gives no embeddings; embedding models: "
                f"{', '.join(known) or 'none'}",
                param="model",
                openai_code="invalid_value",
            )
        raise unknown_model(name or "", known, what="embedding model")


class EmbeddingModels:
    """`GET …/embeddings/models`"""

    def __init__(self, names: Collection[str]) -> None:
        created = unix_time()  # of this process: a checkpoint is a thing of other ones
        self._models = [EmbeddingModelObject(id=n, created=created, owned_by=OWNER) for n in names]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = EMBEDDING_MODELS_ROUTE
        allows = exchange.meter.limits.allows_model
        answer = EmbeddingModelList(data=[model for model in self._models if allows(model.id)])
        await send_json(send, answer.model_dump_json().encode())


def _parse(body: bytes) -> EmbeddingRequest:
    return parse_request(EmbeddingRequest, decode_json(body))


def _num_tokens_about(inputs: EmbeddingInputs) -> int:
    """Before the model's replica has counted."""
    return sum(
        tokens_in(len(item)) if isinstance(item, str) else len(item) for item in inputs.items
    )


def _placed(error: ValidationError, inputs: EmbeddingInputs) -> ValidationError:
    """The replica counts inputs; the client may have written only one, outside of an array."""
    problems = []
    for problem in error.problems:
        match problem.loc:
            case ("input", int(index)):
                problems.append(replace(problem, loc=inputs.place(index)))
            case _:
                problems.append(problem)
    return ValidationError(problems)


def _check_dimensions(dimensions: int, width: int) -> None:
    if dimensions > width:
        message = f"must be at most {width}, the width of this model; given {dimensions}"
        raise ValidationError(
            [FieldProblem(loc=("dimensions",), message=message, kind="out_of_range")]
        )


def _answer_body(request: EmbeddingRequest, name: str, embeddings: Embeddings) -> bytes:
    vectors_ND = _narrowed(embeddings.vectors_ND, request.dimensions)
    is_base64 = request.encoding_format == "base64"
    items = b",".join(_items(vectors_ND, is_base64=is_base64))
    tail = {
        "model": name,
        "usage": {"prompt_tokens": embeddings.num_tokens, "total_tokens": embeddings.num_tokens},
    }
    return b'{"object":"list","data":[%b],%b' % (items, orjson.dumps(tail)[1:])


def _narrowed(vectors_ND: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    if dimensions is None or dimensions == vectors_ND.shape[1]:
        return vectors_ND
    narrow_ND = vectors_ND[:, :dimensions]
    lengths_N1 = np.linalg.norm(narrow_ND, axis=1, keepdims=True)
    narrowed: NDArray[np.float32] = narrow_ND / np.maximum(lengths_N1, 1e-12)
    return narrowed


def _items(vectors_ND: NDArray[np.float32], *, is_base64: bool) -> Iterator[bytes]:
    """The objects of `data`, one by one: other threads run in between."""
    for index, vector_D in enumerate(np.ascontiguousarray(vectors_ND, dtype="<f4")):
        if is_base64:
            numbers = b'"%b"' % base64.b64encode(vector_D.tobytes())
        else:
            numbers = orjson.dumps(vector_D, option=orjson.OPT_SERIALIZE_NUMPY)
        yield b'{"object":"embedding","index":%d,"embedding":%b}' % (index, numbers)
