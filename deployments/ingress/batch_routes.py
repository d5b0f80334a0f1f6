"""OpenAI's `/batches`: create, look, list, cancel."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.audit import Act, audited
from cluster.batch_results import TokenCounts
from cluster.batch_store import Batch, BatchState
from cluster.batch_tasks import BatchTasks
from cluster.openai_schema.batches import (
    DEFAULT_LISTED_BATCHES,
    MAX_LISTED_BATCHES,
    BatchCounts,
    BatchError,
    BatchErrors,
    BatchList,
    BatchObject,
    BatchRequest,
    BatchUsage,
    InputTokenDetails,
    OutputTokenDetails,
)
from cluster.openai_schema.validation import parse_request
from deployments.ingress import operations
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.operation import Operation
from deployments.ingress.query_parameters import read_idempotency_key, read_integer
from deployments.ingress.request_body import read_json

BATCHES_ROUTE = "/v1/batches"
BATCH_ROUTE = "/v1/batches/{batch_id}"
CANCEL_ROUTE = "/v1/batches/{batch_id}/cancel"


def batch_endpoints(batches: BatchTasks, *, max_body_bytes: int) -> dict[Operation, ASGIApp]:
    """What serves the operations about batches."""
    return {
        operations.CREATE_BATCH: CreateBatch(batches, max_body_bytes=max_body_bytes),
        operations.BATCHES: ListBatches(batches),
        operations.ONE_BATCH: OneBatch(batches),
        operations.CANCEL_BATCH: CancelBatch(batches),
    }


class CreateBatch:
    """`POST /batches`, an ASGI app."""

    def __init__(self, batches: BatchTasks, *, max_body_bytes: int) -> None:
        self._batches = batches
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = BATCHES_ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(BatchRequest, body)
        key = read_idempotency_key(scope)
        await _send_batch(
            send, await self._batches.request(exchange.key, request, idempotency_key=key)
        )


class ListBatches:
    """`GET /batches`, an ASGI app. The newest first."""

    def __init__(self, batches: BatchTasks) -> None:
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = BATCHES_ROUTE
        limit = read_integer(
            scope, "limit", default=DEFAULT_LISTED_BATCHES, low=1, high=MAX_LISTED_BATCHES
        )
        after = Request(scope).query_params.get("after", "")
        page = await self._batches.find(exchange.tenant, after=after, limit=limit)
        objects = [batch_object(batch) for batch in page.batches]
        answer = BatchList(
            data=objects,
            first_id=objects[0].id if objects else None,
            last_id=objects[-1].id if objects else None,
            has_more=page.has_more,
        )
        await send_json(send, answer.model_dump_json().encode())


class OneBatch:
    """`GET /batches/{batch_id}`, an ASGI app."""

    def __init__(self, batches: BatchTasks) -> None:
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = BATCH_ROUTE
        await _send_batch(send, await self._batches.get(exchange.tenant, _batch_id(scope)))


class CancelBatch:
    """`POST /batches/{batch_id}/cancel`, an ASGI app."""

    def __init__(self, batches: BatchTasks) -> None:
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = CANCEL_ROUTE
        batch_id = _batch_id(scope)
        with audited(Act.BATCH_CANCELLED, f"batch {batch_id}"):
            batch = await self._batches.cancel(exchange.tenant, batch_id)
        await _send_batch(send, batch)


async def _send_batch(send: Send, batch: Batch) -> None:
    await send_json(send, batch_object(batch).model_dump_json().encode())


def batch_object(batch: Batch) -> BatchObject:
    def reached(state: BatchState) -> int | None:
        at = batch.reached_at.get(state)
        return None if at is None else int(at)

    errors = [
        BatchError(code=e.code, line=e.line, message=e.message, param=e.param) for e in batch.errors
    ]
    return BatchObject(
        id=batch.batch_id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=batch.input_file_id,
        status=batch.status.value,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at),
        in_progress_at=reached(BatchState.IN_PROGRESS),
        expires_at=int(batch.expires_at),
        finalizing_at=reached(BatchState.FINALIZING),
        completed_at=reached(BatchState.COMPLETED),
        failed_at=reached(BatchState.FAILED),
        expired_at=reached(BatchState.EXPIRED),
        cancelling_at=reached(BatchState.CANCELLING),
        cancelled_at=reached(BatchState.CANCELLED),
        request_counts=BatchCounts(
            total=batch.num_total, completed=batch.num_completed, failed=batch.num_failed
        ),
        usage=None if batch.tokens is None else _usage(batch.tokens),
        metadata=None if batch.metadata is None else dict(batch.metadata),
    )


def _usage(tokens: TokenCounts) -> BatchUsage:
    return BatchUsage(
        input_tokens=tokens.input_tokens,
        input_tokens_details=InputTokenDetails(cached_tokens=tokens.cached_tokens),
        output_tokens=tokens.output_tokens,
        output_tokens_details=OutputTokenDetails(reasoning_tokens=tokens.reasoning_tokens),
        total_tokens=tokens.input_tokens + tokens.output_tokens,
    )


def _batch_id(scope: Scope) -> str:
    return str(Request(scope).path_params["batch_id"])
