"""One batch in the hands of a worker: checked, run line by line, and written down.

Whatever dies, the batch goes on from its last check-point. A line has one result however often it
is run: pointers to results are saved set-if-absent (see `batch_results`). What a batch is to become
is decided before its files are written, and nothing is run afterwards: two workers that both write
them write the same.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

import msgspec

from cluster.batch_lines import InputCheck, Line, decode_line, line_blocks
from cluster.batch_results import (
    BatchResults,
    Pointer,
    TokenCounts,
    pointers_of,
    unanswered_line,
)
from cluster.batch_store import Batch, BatchState, LineError, is_expired
from cluster.errors import NotFoundError
from cluster.openai_schema.files import OUTPUT_PURPOSE
from cluster.redis_client import Argument
from cluster.task_queue.running_task import RunningTask
from cluster.tenants.records import ApiKey
from cluster.tenants.usage import UsageCounts
from deployments.line_run import BatchTools, LineRun


class BatchRun:
    """Runs a batch from wherever it is to its end."""

    def __init__(self, tools: BatchTools, batch: Batch, task: RunningTask, key: ApiKey) -> None:
        """`key`: who asked for the batch."""
        self._tools = tools
        self._key = key
        self._batch = batch
        self._task = task
        self._tenant = task.record.tenant
        self._results = BatchResults(tools.files, self._tenant, batch.batch_id)

    async def run(self) -> None:
        """
        Raises:
            LeaseLostError: another worker has it.
            ServiceUnavailableError: to be tried again later.
            StorageFullError: it cannot be run.
        """
        state = self._batch.status
        if state is BatchState.VALIDATING:
            state = await self._validate()
        if state is BatchState.IN_PROGRESS:
            state = await self._run_lines()
        if state in (BatchState.FINALIZING, BatchState.CANCELLING):
            await self._write_files()
        await self._results.delete()

    async def fail(self, message: str) -> None:
        """It cannot be run at all."""
        error = LineError(code="server_error", line=None, message=message)
        unfinished = [state for state in BatchState if not state.is_final]
        await self._move(unfinished, BatchState.FAILED, {"errors": msgspec.json.encode([error])})

    # -- validating ----------------------------------------------------------------------------

    async def _validate(self) -> BatchState:
        before = [BatchState.VALIDATING]
        if is_expired(self._batch):
            return await self._move(before, BatchState.EXPIRED)
        endpoint = self._batch.endpoint
        check = InputCheck(
            endpoint,
            is_served=self._is_served,
            max_requests=self._tools.max_requests,
        )
        try:
            await self._check(check)
        except NotFoundError:
            return await self._move(before, BatchState.FAILED, {"errors": _errors(_NO_INPUT)})
        if check.errors:
            errors = [LineError(**error.model_dump()) for error in check.errors]
            return await self._move(before, BatchState.FAILED, {"errors": _errors(*errors)})
        fields: dict[str, Argument] = {"num_total": check.num_requests, "model": check.model or ""}
        return await self._move(before, BatchState.IN_PROGRESS, fields)

    def _is_served(self, model: str | None) -> bool:
        """Whether there is such a model for the tenant."""
        endpoint = self._batch.endpoint
        limits = self._tools.keys.limits(self._tenant)
        name = self._tools.default_model(endpoint) if model is None else model
        return self._tools.is_served(endpoint, model) and limits.allows_model(name)

    async def _check(self, check: InputCheck) -> None:
        async with aclosing(self._input()) as blocks:
            async for block in blocks:
                await asyncio.to_thread(check.feed, block)
                if check.is_full:
                    break
        check.finish()

    async def _input(self) -> AsyncGenerator[list[Line], None]:
        """
        Raises:
            NotFoundError: its owner has deleted the file.
        """
        async with self._tools.files.open(self._tenant, self._batch.input_file_id) as opened:
            blocks = line_blocks(opened.chunks(), max_line_bytes=self._tools.max_line_bytes)
            async for block in blocks:
                yield block

    # -- in progress ---------------------------------------------------------------------------

    async def _run_lines(self) -> BatchState:
        lines = LineRun(self._tools, self._batch, self._task, self._results, self._key)
        fields: dict[str, Argument] = {"ending": BatchState.COMPLETED}
        try:
            async with aclosing(self._input()) as blocks:
                if not await lines.run(blocks):
                    fields["ending"] = BatchState.EXPIRED
        except NotFoundError:
            fields = {"ending": BatchState.FAILED, "errors": _errors(_NO_INPUT)}
        if lines.stopped_by is not None:
            return lines.stopped_by
        return await self._move([BatchState.IN_PROGRESS], BatchState.FINALIZING, fields)

    # -- finalizing ----------------------------------------------------------------------------

    async def _write_files(self) -> None:
        batch = await self._tools.store.get(self._tenant, self._batch.batch_id)
        ending = batch.ending
        if batch.status is BatchState.CANCELLING or ending is None:
            ending = BatchState.CANCELLED
        pointers = pointers_of(await self._tools.queue.items(self._task.record.task_id))
        outputs = [pointer for pointer in pointers.values() if not pointer.is_error]
        num_failed = len(pointers) - len(outputs)
        fields: dict[str, Argument] = {}
        if outputs:
            fields["output_file_id"] = await self._file("output", self._results.lines(outputs))
        if ending is BatchState.EXPIRED and len(pointers) < batch.num_total:
            num_failed = batch.num_total - len(outputs)
            fields["error_file_id"] = await self._file("error", self._with_expired(pointers))
        elif num_failed:
            failed = [pointer for pointer in pointers.values() if pointer.is_error]
            fields["error_file_id"] = await self._file("error", self._results.lines(failed))
        total = TokenCounts()
        for pointer in pointers.values():
            total = total.plus(pointer.tokens)
        # Before it has ended: what dies here does it again, and it counts once.
        await self._count_usage(batch, len(outputs), total)
        fields |= {"num_completed": len(outputs), "num_failed": num_failed}
        fields["tokens"] = msgspec.json.encode(total)
        await self._move([BatchState.FINALIZING, BatchState.CANCELLING], ending, fields)

    async def _count_usage(self, batch: Batch, num_answered: int, tokens: TokenCounts) -> None:
        counts = UsageCounts(
            num_requests=num_answered,
            prompt_tokens=tokens.input_tokens,
            cached_tokens=tokens.cached_tokens,
            completion_tokens=tokens.output_tokens,
        )
        if any(counts):
            model = batch.model or self._tools.default_model(batch.endpoint)
            await self._tools.usage.add_once(
                *(batch.batch_id, self._tenant), model=model, key_id=self._key.key_id, counts=counts
            )

    async def _file(self, kind: str, lines: AsyncIterator[bytes]) -> str:
        """Write a file of the batch; its id is the same whenever it is written."""
        batch_id = self._batch.batch_id
        file_id = f"file-{batch_id.removeprefix('batch_')}-{kind}"
        await self._task.heart_beat()  # may we still?
        written = await self._tools.files.write(self._tenant, lines, file_id=file_id)
        await self._tools.files.add(
            self._tenant,
            written,
            filename=f"{batch_id}_{kind}.jsonl",
            purpose=OUTPUT_PURPOSE,
            expires_after_s=self._batch.output_retention_s,
        )
        return file_id

    async def _with_expired(self, pointers: Mapping[int, Pointer]) -> AsyncIterator[bytes]:
        """The lines of the error file where the window was over before all lines were run."""
        message = "This request could not be executed before the completion window expired."
        async with aclosing(self._input()) as blocks:
            async for block in blocks:
                for line in block:
                    if line.number not in pointers and line.data is not None:
                        custom_id = decode_line(line.data).custom_id
                        yield (
                            unanswered_line(
                                self._batch.batch_id,
                                line.number,
                                custom_id,
                                code="batch_expired",
                                message=message,
                            )
                            + b"\n"
                        )
                failed = (pointers.get(line.number) for line in block)
                async for data in self._results.lines(p for p in failed if p and p.is_error):
                    yield data

    async def _move(
        self,
        allowed: list[BatchState],
        to: BatchState,
        fields: Mapping[str, Argument] | None = None,
    ) -> BatchState:
        return await self._tools.store.move(self._tenant, self._batch.batch_id, allowed, to, fields)


_NO_INPUT = LineError(
    code="input_file_not_found",
    line=None,
    message="The input file is not there any more.",
    param="input_file_id",
)


def _errors(*errors: LineError) -> bytes:
    return msgspec.json.encode(errors)
