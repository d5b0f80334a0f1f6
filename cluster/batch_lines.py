"""The lines of a batch's input file: read in flat memory, and checked before anything runs.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}

As at OpenAI, all lines of a file go to one endpoint and one model.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

import msgspec
import orjson

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.batches import BatchError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.completions import CompletionRequest
from cluster.openai_schema.embeddings import EmbeddingRequest
from cluster.openai_schema.validation import parse_request
from cluster.openai_schema.values import shown

MAX_CUSTOM_ID_CHARS = 512
MAX_ERRORS = 100  # then the rest of a file is not looked at
MAX_EMBEDDING_INPUTS = 50_000  # of a batch, as at OpenAI
_CONTENT_FIELDS = frozenset({"messages", "prompt", "input", "tools"})
_FIELDS = ("custom_id", "method", "url", "body")
_BOM = b"\xef\xbb\xbf"

AnyRequest = ChatCompletionRequest | CompletionRequest | EmbeddingRequest
REQUEST_TYPES: dict[str, type[ChatCompletionRequest | CompletionRequest | EmbeddingRequest]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
}


class Line(NamedTuple):
    """A line that is not blank; `number` counts all lines, from 1."""

    number: int
    data: bytes | None  # None: it is longer than a request may be


class LineRequest(msgspec.Struct, frozen=True):
    """What of a checked line is needed to run it."""

    custom_id: str
    body: msgspec.Raw


async def line_blocks(
    pieces: AsyncIterator[bytes], *, max_line_bytes: int
) -> AsyncIterator[list[Line]]:
    """A file's lines, those of a piece at a time."""
    reader = _LineReader(max_line_bytes)
    async for piece in pieces:
        lines = reader.feed(piece)
        if lines:
            yield lines
    yield reader.feed(b"\n")


def decode_line(data: bytes) -> LineRequest:
    """A line that has been checked before."""
    return msgspec.json.decode(data, type=LineRequest)


class InputCheck:
    """Checks a file line by line: `feed` all of it, then `finish`, then look at `errors`."""

    def __init__(
        self, endpoint: str, *, is_served: Callable[[str | None], bool], max_requests: int
    ) -> None:
        """`is_served`: whether the endpoint has a model of that name; None is the default one."""
        self.errors: list[BatchError] = []
        self.num_requests = 0
        self.model: str | None = None  # of all lines; None: none is named
        self._endpoint = endpoint
        self._is_served = is_served
        self._max_requests = max_requests
        self._custom_ids: set[str] = set()
        self._num_inputs = 0

    @property
    def is_full(self) -> bool:
        """Enough was found; the rest need not be looked at."""
        return len(self.errors) >= MAX_ERRORS or self.num_requests > self._max_requests

    def feed(self, lines: Sequence[Line]) -> None:
        """May run on any thread, one block after the other."""
        for line in lines:
            self._check(line)
            if self.is_full:
                return

    def finish(self) -> None:
        """What only the whole file shows."""
        if self.num_requests == 0:
            self._note("empty_file", None, "The file has no requests.")
        if self.num_requests > self._max_requests:
            message = f"The file has more than {self._max_requests} requests, which is the limit."
            self._note("too_many_requests", None, message)
        if self._num_inputs > MAX_EMBEDDING_INPUTS:
            message = (
                f"The requests have {self._num_inputs} inputs together; the limit is "
                f"{MAX_EMBEDDING_INPUTS}."
            )
            self._note("too_many_inputs", None, message, "body.input")

    def _note(self, code: str, line: int | None, message: str, param: str | None = None) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(BatchError(code=code, line=line, message=message, param=param))

    def _check(self, line: Line) -> None:
        self.num_requests += 1
        if line.data is None:
            self._note("line_too_long", line.number, "This line is longer than a request may be.")
            return
        try:
            value = orjson.loads(line.data)
        except orjson.JSONDecodeError as error:
            message = f"This line is not parseable as valid JSON: {error}."
            self._note("invalid_json_line", line.number, message)
            return
        if not isinstance(value, dict):
            message = f"This line must be a JSON object; given {shown(value)}."
            self._note("invalid_json_line", line.number, message)
            return
        if self._has_fields(value, line.number):
            self._check_custom_id(value["custom_id"], line.number)
            self._check_address(value, line.number)
            self._check_body(value["body"], line.number)

    def _has_fields(self, value: dict[str, object], number: int) -> bool:
        missing = [name for name in _FIELDS if name not in value]
        for name in missing:
            message = f"{name} is required; a line has {', '.join(_FIELDS)}."
            self._note("missing_required_parameter", number, message, name)
        for name in value.keys() - set(_FIELDS):
            message = f"is not a field of a line; a line has {', '.join(_FIELDS)}."
            self._note("unknown_parameter", number, f"{shown(name)} {message}", name[:100])
        return not missing

    def _check_custom_id(self, custom_id: object, number: int) -> None:
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
            message = (
                f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters; given "
                f"{shown(custom_id)}."
            )
            self._note("invalid_custom_id", number, message, "custom_id")
        elif custom_id in self._custom_ids:
            message = f"The custom_id {shown(custom_id)} is that of a line before."
            self._note("duplicate_custom_id", number, message, "custom_id")
        else:
            self._custom_ids.add(custom_id)

    def _check_address(self, value: dict[str, object], number: int) -> None:
        method, url = value["method"], value["url"]
        if method != "POST":
            message = f"method must be 'POST'; given {shown(method)}."
            self._note("invalid_method", number, message, "method")
        if url != self._endpoint:
            message = f"url must be {self._endpoint!r}, the batch's endpoint; given {shown(url)}."
            self._note("invalid_url", number, message, "url")

    def _check_body(self, body: object, number: int) -> None:
        if isinstance(body, dict) and body.get("stream"):
            message = "body.stream: a batch has no streams; leave it out."
            self._note("streaming_not_supported", number, message, "body.stream")
            return
        try:
            request = parse_request(REQUEST_TYPES[self._endpoint], body)
        except ValidationError as error:
            for problem in error.problems:
                path = ".".join(map(str, ("body", *problem.loc)))
                self._note(problem.kind, number, f"{path}: {_without_content(problem)}", path)
            return
        if isinstance(request, EmbeddingRequest):
            self._num_inputs += len(request.input.items)
        self._check_model(request.model, number)

    def _check_model(self, model: str | None, number: int) -> None:
        if not self._is_served(model):
            message = (
                f"The model {shown(model)} does not exist here, or is none for this endpoint; "
                "those of external providers are none for batches."
            )
            self._note("model_not_found", number, message, "body.model")
        elif self.num_requests == 1:
            self.model = model
        elif model != self.model:
            message = (
                f"A file is for one model: this line is for {shown(model)}, the first one for "
                f"{shown(self.model)}."
            )
            self._note("mismatched_model", number, message, "body.model")


def _without_content(problem: FieldProblem) -> str:
    """What is wrong, without what people wrote: errors are kept in Redis, prompts are not."""
    is_within = bool(problem.loc) and problem.loc[0] in _CONTENT_FIELDS
    has_content = is_within and problem.loc[-1] not in ("role", "type")
    return problem.message.partition("; given ")[0] if has_content else problem.message


class _LineReader:
    """Cuts pieces into lines; of a line that is too long nothing is kept."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._begun = bytearray()  # of the line that has not ended yet
        self._is_too_long = False
        self._num_lines = 0

    def feed(self, piece: bytes) -> list[Line]:
        """The lines that end in this piece, without blank ones."""
        *ended, rest = piece.split(b"\n")
        lines = []
        for part in ended:
            self._keep(part)
            lines.append(self._end())
        self._keep(rest)
        return [line for line in lines if line is not None]

    def _keep(self, part: bytes) -> None:
        if self._is_too_long or len(self._begun) + len(part) > self._max_line_bytes:
            self._is_too_long = True
            self._begun.clear()
        else:
            self._begun += part

    def _end(self) -> Line | None:
        self._num_lines += 1
        data, is_too_long = bytes(self._begun), self._is_too_long
        self._begun.clear()
        self._is_too_long = False
        if self._num_lines == 1:
            data = data.removeprefix(_BOM)
        if is_too_long:
            return Line(self._num_lines, None)
        return Line(self._num_lines, data) if data.strip() else None
