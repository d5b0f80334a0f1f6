"""From the bytes of a request to a decoded JSON object, within bounds.

JSON is what RFC 8259 says: UTF-8, no NaN, no lone surrogates. Texts that only a lenient parser
accepts are looked at a second time, to name the field instead of a byte position.
"""

import asyncio
import json
import math
from collections.abc import Iterable

import orjson
from starlette.types import Message, Receive, Scope

from cluster.errors import (
    BodyTooLargeError,
    FieldProblem,
    InvalidJSONError,
    UnsupportedMediaTypeError,
    ValidationError,
)
from deployments.ingress.errors import ClientLeftError

LINGER_S = 2.0


async def read_json(scope: Scope, receive: Receive, *, max_body_bytes: int) -> object:
    """The decoded body.

    Raises:
        UnsupportedMediaTypeError, BodyTooLargeError, InvalidJSONError: as they say.
        ValidationError: a number or a text in it that JSON does not have.
        ClientLeftError: the client left before it had sent everything.
    """
    return decode_json(await read_body(scope, receive, max_body_bytes=max_body_bytes))


async def read_body(scope: Scope, receive: Receive, *, max_body_bytes: int) -> bytes:
    """The body of a request that says it is JSON, not decoded yet.

    Raises:
        UnsupportedMediaTypeError, BodyTooLargeError, ClientLeftError: see `read_json`.
    """
    _check_headers(scope, max_body_bytes)
    return await _read(receive, max_body_bytes)


def decode_json(body: bytes) -> object:
    """See `read_json`."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        problem = _leniently_readable_problem(body)
        if problem is not None:
            raise ValidationError([problem]) from None
        raise InvalidJSONError(f"The body is not valid JSON: {error}") from None


async def linger(receive: Receive) -> None:
    """Read and drop what a client still sends after its answer, for a moment.

    Closing at once would make its system throw the answer away.
    """
    try:
        async with asyncio.timeout(LINGER_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _check_headers(scope: Scope, max_body_bytes: int) -> None:
    headers = dict(scope["headers"])
    media_type, _, parameters = headers.get(b"content-type", b"application/json").partition(b";")
    media_type = media_type.strip().lower()
    is_json = media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )
    if not is_json:
        shown = media_type.decode("latin-1")[:100]
        raise UnsupportedMediaTypeError(f"Content-Type must be application/json; given {shown!r}")
    charset = parameters.strip().lower().removeprefix(b"charset=").strip(b'"')
    if parameters.strip().lower().startswith(b"charset=") and charset not in (b"utf-8", b"utf8"):
        raise UnsupportedMediaTypeError("JSON is UTF-8; no other charset is read")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaTypeError("Content-Encoding is not supported")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > max_body_bytes:
        raise _too_large(f"{int(length)}", max_body_bytes)


async def _read(receive: Receive, max_body_bytes: int) -> bytes:
    message: Message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > max_body_bytes:
            raise _too_large(str(len(body)), max_body_bytes)
        return body
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        parts += message.get("body", b"")
        if len(parts) > max_body_bytes:
            raise _too_large(f"more than {max_body_bytes}", max_body_bytes)
        if not message.get("more_body", False):
            return bytes(parts)
        message = await receive()


def _too_large(given: str, limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body has {given} bytes; the limit is {limit}.")


def _leniently_readable_problem(body: bytes) -> FieldProblem | None:
    """The first value that Python's parser takes and JSON does not have, None for other errors."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    return _first_problem(value)


def _first_problem(value: object) -> FieldProblem | None:
    # A stack of its own: the value may be nested as deeply as the parser allows.
    stack: list[tuple[tuple[str | int, ...], object]] = [((), value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return FieldProblem(loc=path, message="must be a finite number", kind="finite_number")
        if isinstance(item, str) and _has_surrogates(item):
            return FieldProblem(
                loc=path, message="contains half of a surrogate pair", kind="string_unicode"
            )
        for key, child in _children(item):
            if isinstance(key, str) and _has_surrogates(key):
                message = "has a key with half of a surrogate pair"
                return FieldProblem(loc=path, message=message, kind="string_unicode")
            stack.append(((*path, key), child))
    return None


def _children(item: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(item, dict):
        return reversed(item.items())
    return reversed(list(enumerate(item))) if isinstance(item, list) else ()


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)
