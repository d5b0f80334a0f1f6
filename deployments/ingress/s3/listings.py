"""ListObjects, both versions: the query, and the page as XML."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from cluster.storage.folder_walk import LAST
from cluster.storage.stored_object import ObjectInfo, ObjectPage
from deployments.ingress.s3.answers import XML, Answer, xml_answer, xml_time
from deployments.ingress.s3.errors import S3Error
from deployments.ingress.s3.request import S3Request

MAX_KEYS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What a listing is asked for. `start`: the marker, or the text that it starts after."""

    is_v2: bool
    prefix: str
    delimiter: str
    max_keys: int
    start: str
    token: str
    encode: Callable[[str], str]  # how keys are written
    is_encoded: bool
    has_owner: bool

    @property
    def after(self) -> bytes:
        """
        Raises:
            S3Error: the continuation token is not one of ours.
        """
        if self.token:
            try:
                return base64.b64decode(self.token, altchars=b"-_", validate=True)
            except binascii.Error:
                raise S3Error("InvalidArgument", "The continuation token is not one.") from None
        start = self.start.encode("utf-8", "surrogatepass")
        # A group that was the last of a page is not to come again.
        is_group = bool(self.delimiter) and self.delimiter in self.start[len(self.prefix) :]
        return start + LAST if is_group and self.start.endswith(self.delimiter) else start


def list_query(request: S3Request) -> ListQuery:
    """
    Raises:
        S3Error: a value that is not allowed.
    """
    query = request.query
    is_v2 = "list-type" in query
    if query.get("list-type", "2") != "2":
        raise S3Error("InvalidArgument", "list-type must be 2.")
    return ListQuery(
        is_v2=is_v2,
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        max_keys=number_in(query, "max-keys", default=MAX_KEYS, maximum=MAX_KEYS),
        start=query.get("start-after" if is_v2 else "marker", ""),
        token=query.get("continuation-token", ""),
        encode=encoding(query),
        is_encoded="encoding-type" in query,
        has_owner=not is_v2 or query.get("fetch-owner") == "true",
    )


def listing(request: S3Request, query: ListQuery, page: ObjectPage) -> Answer:
    """The page as S3 writes it."""
    encode = query.encode
    common: list[tuple[str, XML]] = [
        ("Name", request.bucket),
        ("Prefix", encode(query.prefix)),
        ("MaxKeys", query.max_keys),
        ("IsTruncated", "false" if page.next_after is None else "true"),
    ]
    if query.delimiter:
        common.append(("Delimiter", encode(query.delimiter)))
    if query.is_encoded:
        common.append(("EncodingType", "url"))
    common += _place_v2(query, page) if query.is_v2 else _place_v1(query, page)
    common += [
        ("Contents", _contents(info, encode, request.tenant if query.has_owner else None))
        for info in page.objects
    ]
    common += [("CommonPrefixes", [("Prefix", encode(prefix))]) for prefix in page.common_prefixes]
    return xml_answer("ListBucketResult", common)


def encoding(query: Mapping[str, str]) -> Callable[[str], str]:
    """How keys are written: as they are, or as in URLs, where any character can be said.

    Raises:
        S3Error: another encoding is wanted.
    """
    if query.get("encoding-type", "url") != "url":
        raise S3Error("InvalidArgument", "encoding-type must be url.")
    return _url_encoded if "encoding-type" in query else str


def number_in(query: Mapping[str, str], name: str, *, default: int, maximum: int) -> int:
    """A number of the query, no more than `maximum`.

    Raises:
        S3Error: it is not a number.
    """
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise S3Error("InvalidArgument", f"{name} must be a number from 0; given {text[:40]!r}.")
    return min(int(text), maximum)


def _place_v1(query: ListQuery, page: ObjectPage) -> list[tuple[str, XML]]:
    place: list[tuple[str, XML]] = [("Marker", query.encode(query.start))]
    if page.next_after is not None and query.delimiter:
        place.append(("NextMarker", query.encode(page.next_after.removesuffix(LAST).decode())))
    return place


def _place_v2(query: ListQuery, page: ObjectPage) -> list[tuple[str, XML]]:
    place: list[tuple[str, XML]] = [
        ("KeyCount", len(page.objects) + len(page.common_prefixes)),
    ]
    if query.token:
        place.append(("ContinuationToken", query.token))
    if query.start:
        place.append(("StartAfter", query.encode(query.start)))
    if page.next_after is not None:
        place.append(("NextContinuationToken", base64.urlsafe_b64encode(page.next_after).decode()))
    return place


def _contents(
    info: ObjectInfo, encode: Callable[[str], str], owner: str | None
) -> list[tuple[str, XML]]:
    facts: list[tuple[str, XML]] = [
        ("Key", encode(info.key)),
        ("LastModified", xml_time(info.modified_at)),
        ("ETag", f'"{info.etag}"'),
        ("Size", info.num_bytes),
        ("StorageClass", "STANDARD"),
    ]
    if owner is not None:
        facts.append(("Owner", [("ID", owner), ("DisplayName", owner)]))
    return facts


def _url_encoded(text: str) -> str:
    return quote(text, safe="/", errors="surrogatepass")
