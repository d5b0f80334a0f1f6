"""Results of a batch's lines while it runs, and the files that they become.

What lines answered is kept in segments, objects `batches/<batch>/<segment>` of many lines each, and
a line's `Pointer` says where. The pointers are the truth: they are saved set-if-absent with the
task (`RunningTask.save_items`), after the segment was written. A segment that nobody points to is a
repetition; it goes with the others.
"""

import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import msgspec
import orjson

from cluster.file_store import BATCHES_PREFIX, FileStore

_MAX_SEGMENT_BYTES = 2**31
_NUM_KEPT_SEGMENTS = 4  # while they are read in the lines' order, which is almost the segments'


class TokenCounts(msgspec.Struct, frozen=True, array_like=True):
    """Of one answer, or of many."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def plus(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class LineResult(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the output or error file, without its end."""

    number: int  # of the line in the input
    is_error: bool
    data: bytes
    tokens: TokenCounts = TokenCounts()


class Pointer(msgspec.Struct, frozen=True, array_like=True):
    """Where a line's result is."""

    segment: str
    start: int
    num_bytes: int
    is_error: bool
    tokens: TokenCounts = TokenCounts()


class BatchResults:
    """The results of one batch."""

    def __init__(self, files: FileStore, tenant: str, batch_id: str) -> None:
        self._files = files
        self._tenant = tenant
        self._prefix = f"{BATCHES_PREFIX}{batch_id}/"

    async def write(self, results: Sequence[LineResult]) -> dict[str, bytes]:
        """Put results into a new segment; returns the encoded pointers by line.

        Raises:
            ServiceUnavailableError, StorageFullError: they are not stored.
        """
        segment = uuid.uuid4().hex
        pointers, start = {}, 0
        for result in results:
            pointer = Pointer(segment, start, len(result.data), result.is_error, result.tokens)
            pointers[str(result.number)] = msgspec.json.encode(pointer)
            start += len(result.data)
        content = b"".join(result.data for result in results)
        bucket = await self._files.bucket(self._tenant)
        await self._files.objects.put(bucket, self._prefix + segment, content)
        return pointers

    async def lines(self, pointers: Iterable[Pointer]) -> AsyncIterator[bytes]:
        """The results' lines in the given order, with their ends."""
        segments: OrderedDict[str, bytes] = OrderedDict()
        bucket = await self._files.bucket(self._tenant)
        for pointer in pointers:
            if pointer.segment not in segments:
                _, segments[pointer.segment] = await self._files.objects.get(
                    bucket, self._prefix + pointer.segment, max_bytes=_MAX_SEGMENT_BYTES
                )
            segments.move_to_end(pointer.segment)
            if len(segments) > _NUM_KEPT_SEGMENTS:
                segments.popitem(last=False)
            data = segments[pointer.segment]
            yield data[pointer.start : pointer.start + pointer.num_bytes] + b"\n"

    async def delete(self) -> None:
        """When the files are written, nobody needs the segments."""
        bucket = await self._files.bucket(self._tenant)
        keys = [info.key async for info in self._files.objects.list_objects(bucket, self._prefix)]
        for key in keys:
            await self._files.objects.delete(bucket, key)


def pointers_of(items: Mapping[str, bytes]) -> dict[int, Pointer]:
    """Saved items as pointers, by the lines' numbers, in their order."""
    decoder = msgspec.json.Decoder(Pointer)
    return {int(number): decoder.decode(items[number]) for number in sorted(items, key=int)}


def request_id_of(batch_id: str, number: int) -> str:
    """The id of a line's request: the same however often it is run."""
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number}"


def answered_line(
    batch_id: str, number: int, custom_id: str, *, status: int, request_id: str, body: bytes
) -> bytes:
    """A line of either file, for a request that was answered. `body` is JSON."""
    if b"\n" in body or b"\r" in body:
        body = orjson.dumps(orjson.loads(body))
    line_id = request_id_of(batch_id, number)
    parts = (
        b'{"id":%b,"custom_id":%b,' % (orjson.dumps(line_id), orjson.dumps(custom_id)),
        b'"response":{"status_code":%d,' % status,
        b'"request_id":%b,"body":%b},' % (orjson.dumps(request_id or line_id), body),
        b'"error":null}',
    )
    return b"".join(parts)


def unanswered_line(
    batch_id: str, number: int, custom_id: str, *, code: str, message: str
) -> bytes:
    """A line of the error file, for a request that was not run."""
    return orjson.dumps(
        {
            "id": request_id_of(batch_id, number),
            "custom_id": custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        }
    )


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _Answer(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


def tokens_of(body: bytes) -> TokenCounts:
    """The usage that an answer states."""
    usage = msgspec.json.decode(body, type=_Answer).usage or _Usage()
    prompt, output = usage.prompt_tokens_details, usage.completion_tokens_details
    return TokenCounts(
        usage.prompt_tokens,
        (prompt.cached_tokens if prompt is not None else None) or 0,
        usage.completion_tokens,
        (output.reasoning_tokens if output is not None else None) or 0,
    )
