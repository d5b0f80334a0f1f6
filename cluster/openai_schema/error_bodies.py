"""The bodies of errors, as `cluster.errors` makes them, for the published description."""

from typing import Literal

from pydantic import BaseModel


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class DetailItem(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class ValidationErrorBody(BaseModel):
    """422: FastAPI's `detail` beside OpenAI's `error`."""

    detail: list[DetailItem]
    error: OpenAIError


class ErrorSource(BaseModel):
    pointer: str


class TelnyxError(BaseModel):
    code: str
    title: str
    detail: str


class TelnyxFieldError(TelnyxError):
    source: ErrorSource


class ErrorsBody(BaseModel):
    """Everything but 422: Telnyx's `errors` beside OpenAI's `error`."""

    errors: list[TelnyxFieldError | TelnyxError]
    error: OpenAIError


class Status(BaseModel):
    """`/health` and `/ready`."""

    status: Literal["ok", "ready"]
