"""Buckets over HTTP as the `shoal bucket` commands use them: the S3 face and the embeddings API."""

import mimetypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element

import httpx
import orjson

from cluster.cli_chat import refusal
from cluster.cli_connection import APIConnection
from cluster.cli_error import CommandError
from cluster.object_store import S3_FACE_PATH
from cluster.storage.xml_document import XMLError, children, parse_xml, tag_of, text_of

EMBEDDINGS_PATH = "/v2/ai/embeddings"
PIECE_BYTES = 256 * 1024
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds; of one read or write
_XML = "xml"


class BucketError(CommandError):
    """The cluster refuses, or does not answer; the message is meant for a person."""


class UnavailableError(BucketError):
    """It does not answer now; asking again may help."""


class NoSuchThingError(BucketError):
    """A bucket, an object or an endpoint is not there."""


class NoFaceError(BucketError):
    """The cluster keeps its objects elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBucket:
    name: str
    created: str  # ISO 8601


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteObject:
    key: str
    num_bytes: int
    modified: str  # ISO 8601


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """An object's embedding."""

    filename: str
    status: str
    updated: str
    error_reason: str


class BucketClient(APIConnection):
    """Connections to one cluster; a context manager. Its methods may be called from threads.

    Every method may raise BucketError.
    """

    def __init__(self, base_url: str, *, api_key: str | None) -> None:
        super().__init__(base_url, api_key=api_key, timeout=_TIMEOUT)

    def buckets(self) -> list[RemoteBucket]:
        root = self._document("/")
        listed = next(children(root, "Buckets"), ())
        return [
            RemoteBucket(
                name=text_of(item, "Name") or "", created=text_of(item, "CreationDate") or ""
            )
            for item in listed
        ]

    def create(self, bucket: str) -> None:
        self._s3("PUT", f"/{quote(bucket, safe='')}")

    def objects(self, bucket: str, *, prefix: str = "") -> Iterator[RemoteObject]:
        """By key, a page at a time."""
        query = {"list-type": "2", "prefix": prefix}
        while True:
            root = self._document(f"/{quote(bucket, safe='')}", params=query)
            for item in children(root, "Contents"):
                yield RemoteObject(
                    key=text_of(item, "Key") or "",
                    num_bytes=int(text_of(item, "Size") or 0),
                    modified=text_of(item, "LastModified") or "",
                )
            token = text_of(root, "NextContinuationToken")
            if token is None:
                return
            query["continuation-token"] = token

    def put(self, bucket: str, key: str, path: Path, *, sent: Callable[[int], None]) -> None:
        """Upload a file; `sent` hears of each piece's bytes."""
        content_type, encoding = mimetypes.guess_type(path.name)
        headers = {"Content-Length": str(path.stat().st_size)}
        if content_type is not None and encoding is None:
            headers["Content-Type"] = content_type
        self._s3("PUT", _object_path(bucket, key), content=_pieces(path, sent), headers=headers)

    def delete_object(self, bucket: str, key: str) -> None:
        self._s3("DELETE", _object_path(bucket, key))

    def delete_bucket(self, bucket: str) -> None:
        self._s3("DELETE", f"/{quote(bucket, safe='')}")

    def embedded_buckets(self) -> list[str]:
        answer = self._json("GET", "/buckets")
        return [str(name) for name in answer["data"]["buckets"]]

    def files(self, bucket: str) -> list[RemoteFile]:
        """How the embedding of each object of a bucket went.

        Raises:
            NoSuchThingError: the bucket was never embedded.
        """
        answer = self._json("GET", f"/buckets/{quote(bucket, safe='')}")
        return [
            RemoteFile(
                filename=item["filename"],
                status=item["status"],
                updated=item.get("updated_at") or "",
                error_reason=item.get("error_reason") or "",
            )
            for item in answer["data"]
        ]

    def embed(self, body: dict[str, object]) -> dict[str, Any]:
        """Ask for a bucket's embedding; the task."""
        return dict(self._json("POST", "", json=body)["data"])

    def task(self, task_id: str) -> dict[str, Any]:
        return dict(self._json("GET", f"/{quote(task_id, safe='')}")["data"])

    def search(self, bucket: str, query: str, *, max_results: int) -> list[dict[str, Any]]:
        body = {"bucket_name": bucket, "query": query, "num_of_docs": max_results}
        return list(self._json("POST", "/similarity-search", json=body)["data"])

    def delete_embeddings(self, bucket: str) -> None:
        """
        Raises:
            NoSuchThingError: the bucket was never embedded.
        """
        self._request("DELETE", f"{EMBEDDINGS_PATH}/buckets/{quote(bucket, safe='')}")

    def _json(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        response = self._request(method, EMBEDDINGS_PATH + path, **how)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict) or "data" not in answer:
            raise BucketError(f"{self._base_url} gave an answer that is not Shoal's")
        return answer

    def _document(self, path: str, **how: Any) -> Element:
        try:
            return parse_xml(self._s3("GET", path, **how))
        except XMLError as error:
            message = f"{self._base_url} gave an answer that is not Shoal's"
            raise BucketError(message) from error

    def _s3(self, method: str, path: str, **how: Any) -> bytes:
        return self._request(method, S3_FACE_PATH + path, **how).content

    def _request(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **how)
        except httpx.ConnectError as error:
            raise UnavailableError(
                f"nothing answers at {self._base_url}; `shoal up` starts a cluster"
            ) from error
        except httpx.TimeoutException as error:
            raise UnavailableError(f"no answer from {self._base_url} in time") from error
        except httpx.TransportError as error:
            raise UnavailableError(f"the connection to {self._base_url} broke: {error}") from error
        if response.is_success:
            return response
        raise _refused(response, is_s3=path.startswith(S3_FACE_PATH))


def _refused(response: httpx.Response, *, is_s3: bool) -> BucketError:
    is_xml = _XML in response.headers.get("content-type", "")
    status = response.status_code
    if is_s3 and status == httpx.codes.NOT_FOUND and not is_xml:
        return NoFaceError(
            "this cluster keeps its objects at an S3 endpoint (storage.s3_endpoint): put, list and "
            "delete them there"
        )
    message = _s3_refusal(response) if is_xml else refusal(status, response.content)
    if status == httpx.codes.NOT_FOUND:
        return NoSuchThingError(message)
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return UnavailableError(message)
    return BucketError(message)


def _s3_refusal(response: httpx.Response) -> str:
    status = response.status_code
    try:
        root = parse_xml(response.content)
    except XMLError:
        return refusal(status, response.content)
    message = text_of(root, "Message") if tag_of(root) == "Error" else None
    hint = ""
    if status == httpx.codes.FORBIDDEN:
        hint = " (the key comes from SHOAL_API_KEY, else from the api_key file in SHOAL_HOME)"
    return f"{message or 'no explanation'}{hint} [HTTP {status}]"


def _object_path(bucket: str, key: str) -> str:
    return f"/{quote(bucket, safe='')}/{quote(key)}"


def _pieces(path: Path, sent: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            yield data
            sent(len(data))
