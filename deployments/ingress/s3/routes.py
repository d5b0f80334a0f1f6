"""From a request to the operation it asks for: by method, by level, by sub-resource.

S3 has one path for many operations: `?uploads`, `?acl`, … choose among them. A query name that an
operation does not know is refused by name, since ignoring `?versionId=…` or `?acl` would do
something else than was asked.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from starlette.types import Send

from cluster.types import BucketRef
from deployments.ingress.s3.errors import S3Error, not_implemented
from deployments.ingress.s3.request import S3Request

Handler = Callable[[S3Request, Send], Awaitable[None]]
ChangeListener = Callable[[BucketRef], Awaitable[None]]

# Query names that choose an operation, the deciding one first.
_SELECTORS = ("location", "versioning", "delete", "uploads", "uploadId")
# What clients add without meaning anything by it.
_ALWAYS_ALLOWED = {"x-id"}


class Level(StrEnum):
    """What a path names."""

    SERVICE = "the service"
    BUCKET = "a bucket"
    OBJECT = "an object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An operation, and the query names that it reads besides its selector."""

    handler: Handler
    query: frozenset[str] = frozenset()


Routes = Mapping[tuple[Level, str, str], Route]  # by level, method and selector ("": none)


def find_route(routes: Routes, request: S3Request) -> Route:
    """
    Raises:
        S3Error: there is no such operation here.
    """
    level = _level(request)
    selector = next((name for name in _SELECTORS if name in request.query), "")
    route = routes.get((level, request.method, selector))
    known = _ALWAYS_ALLOWED | {selector} | (route.query if route is not None else frozenset())
    unknown = [name for name in request.query if name not in known]
    if unknown:
        raise not_implemented(f"?{unknown[0][:40]} of {request.method} on {level}")
    if route is None:
        if selector:
            raise not_implemented(f"{request.method} with ?{selector} on {level}")
        raise S3Error("MethodNotAllowed", f"{request.method} is not allowed on {level}.")
    return route


def _level(request: S3Request) -> Level:
    if not request.bucket and request.key:
        raise S3Error("InvalidBucketName", "The path has two slashes where a bucket should be.")
    if not request.bucket:
        return Level.SERVICE
    return Level.OBJECT if request.key else Level.BUCKET
