"""What is known of an endpoint: the type of the table in `operations`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from cluster.tenant_config import KeyScope

#: OpenAI's paths, Telnyx's at the time of the page, Telnyx's now.
PREFIXES = ("/v1", "/v2/ai", "/v2/ai/openai")
ANTHROPIC_PREFIXES = ("/v1", "/v2/ai/anthropic/v1")

BODY_ERRORS = (400, 404, 413, 415, 422)
RUN_ERRORS = (408, 429, 500, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A value in the query or in a header; all of them may be left out."""

    name: str
    place: Literal["query", "header"] = "query"
    schema: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """One endpoint under all its paths."""

    name: str
    summary: str
    method: Literal["GET", "POST", "PATCH", "DELETE"] = "POST"
    paths: tuple[str, ...]
    scopes: tuple[KeyScope, ...]  # a key needs one of them; (): any key will do
    parameters: tuple[Parameter, ...] = ()
    requests: tuple[type[BaseModel], ...] = ()  # the body is one of them; (): no body
    is_form: bool = False  # the body is multipart/form-data, not JSON
    answer: type[BaseModel] | None  # None: text
    other_answer: type[BaseModel] | None = None  # what the second of the requests is answered with
    is_empty: bool = False  # the answer has no body
    is_binary: bool = False  # the answer is a file
    success: int = 200  # the status of an answer
    has_stream: bool = False  # with `stream: true` the answer is a stream of events
    errors: tuple[int, ...] = ()
    not_found: type[BaseModel] | None = None  # another body that a 404 may have
    refused: type[BaseModel] | None = None  # the body that a 400 or a 422 has instead
    is_open: bool = False  # needs no key
    is_anthropic: bool = False


def paths_of(*ends: str, prefixes: tuple[str, ...] = PREFIXES) -> tuple[str, ...]:
    return tuple(f"{prefix}/{end}" for prefix in prefixes for end in ends)
