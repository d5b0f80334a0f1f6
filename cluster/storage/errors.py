"""What can go wrong with buckets and objects, beyond the errors that every part of Shoal has."""

from cluster.errors import (
    BadRequestError,
    BodyTooLargeError,
    NotFoundError,
    PermissionDeniedError,
    ServiceUnavailableError,
    ServingError,
)
from cluster.storage.stored_object import ObjectInfo
from cluster.types import BucketRef


class BucketNotFoundError(NotFoundError):
    @classmethod
    def of(cls, ref: BucketRef) -> "BucketNotFoundError":
        return cls(f"There is no bucket {ref.name!r}.", param="bucket_name")


class ObjectNotFoundError(NotFoundError):
    @classmethod
    def of(cls, ref: BucketRef, key: str) -> "ObjectNotFoundError":
        return cls(f"There is no object {key!r} in the bucket {ref.name!r}.", param="key")


class UploadNotFoundError(NotFoundError):
    @classmethod
    def of(cls, upload_id: str) -> "UploadNotFoundError":
        return cls(f"There is no multipart upload {upload_id!r}.", param="uploadId")


class BucketExistsError(ServingError):
    status, code, title = 409, "10012", "Duplicate resource"
    openai_type = "invalid_request_error"


class BucketNotEmptyError(ServingError):
    status, code, title = 409, "10015", "Bucket not empty"
    openai_type = "invalid_request_error"


class ObjectExistsError(ServingError):
    """A put that was to make a new object found one."""

    status, code, title = 412, "10015", "Precondition failed"
    openai_type = "invalid_request_error"


class TooManyUploadsError(PermissionDeniedError):
    """Of a tenant's multipart uploads. Asking again does not help: one must be ended."""


class InvalidPartError(BadRequestError):
    """A part that a completed upload names was not uploaded, or not so."""


class InvalidPartOrderError(BadRequestError):
    """The parts of a completed upload are not in ascending order."""


class ObjectTooLargeError(BodyTooLargeError):
    """More bytes than the caller takes."""


def check_size(info: ObjectInfo, max_bytes: int) -> None:
    """
    Raises:
        ObjectTooLargeError: it has more than `max_bytes`.
    """
    if info.num_bytes > max_bytes:
        raise ObjectTooLargeError(
            f"The object {info.key!r} has {info.num_bytes} bytes; the limit is {max_bytes}."
        )


class StorageFullError(ServingError):
    """The disk has no room; asking again does not help until someone makes some."""

    status, code, title = 507, "10037", "Insufficient storage"


class StorageCredentialsError(ServiceUnavailableError):
    """The endpoint refuses the configured credentials; only an operator can change that."""


class StorageAccessError(ServiceUnavailableError):
    """A file of the storage folder that this process may not read or write."""
