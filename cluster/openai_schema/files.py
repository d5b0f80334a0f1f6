"""`/files` of OpenAI's API: what is answered, and what an upload consists of."""

from typing import Literal

from pydantic import BaseModel

BATCH_PURPOSE = "batch"
OUTPUT_PURPOSE = "batch_output"
#: What clients may upload files for. Ours are `batch_output`.
UPLOAD_PURPOSES = (BATCH_PURPOSE, "user_data")
MAX_LISTED_FILES = 10_000
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 24 * 3600


class FileUpload(BaseModel):
    """The fields of the form, for the published description."""

    file: bytes
    purpose: Literal["batch", "user_data"]


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int  # Unix time
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
