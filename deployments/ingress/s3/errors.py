"""S3's errors: which code and status an exception becomes, and the XML that says so.

https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import re

from cluster.errors import ServiceUnavailableError, ServingError, ValidationError
from cluster.storage.errors import (
    BucketExistsError,
    BucketNotEmptyError,
    BucketNotFoundError,
    InvalidPartError,
    InvalidPartOrderError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StorageFullError,
    TooManyUploadsError,
    UploadNotFoundError,
)
from cluster.tenants.storage_quota import StorageLimitError
from deployments.ingress.errors import as_serving_error

STATUS_OF = {
    "AccessDenied": 403,
    "BadDigest": 400,
    "BucketAlreadyOwnedByYou": 409,
    "BucketNotEmpty": 409,
    "EntityTooLarge": 400,
    "IncompleteBody": 400,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidArgument": 400,
    "InvalidBucketName": 400,
    "InvalidDigest": 400,
    "InvalidPart": 400,
    "InvalidPartOrder": 400,
    "InvalidRange": 416,
    "InvalidRequest": 400,
    "InvalidURI": 400,
    "KeyTooLongError": 400,
    "MalformedXML": 400,
    "MetadataTooLarge": 400,
    "MethodNotAllowed": 405,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NotImplemented": 501,
    "PreconditionFailed": 412,
    "QuotaExceeded": 403,  # as Ceph has it: S3 has no limits of a tenant
    "RequestTimeout": 400,
    "ServiceUnavailable": 503,
    "StorageFull": 507,  # ours: S3 has no end
    "XAmzContentSHA256Mismatch": 400,
}

_CODE_OF: dict[type[ServingError], str] = {
    BucketNotFoundError: "NoSuchBucket",
    BucketExistsError: "BucketAlreadyOwnedByYou",
    BucketNotEmptyError: "BucketNotEmpty",
    ObjectNotFoundError: "NoSuchKey",
    ObjectExistsError: "PreconditionFailed",
    ObjectTooLargeError: "EntityTooLarge",
    UploadNotFoundError: "NoSuchUpload",
    InvalidPartError: "InvalidPart",
    InvalidPartOrderError: "InvalidPartOrder",
    StorageFullError: "StorageFull",
    StorageLimitError: "QuotaExceeded",
    TooManyUploadsError: "QuotaExceeded",
}


class S3Error(Exception):
    """A refusal in S3's words. Codes that are not in `STATUS_OF` are a mistake of ours."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.status = STATUS_OF[code]
        self.message = message
        self.retry_after_s = retry_after_s


def not_implemented(what: str) -> S3Error:
    return S3Error("NotImplemented", f"{what} is not implemented here.")


def as_s3_error(error: Exception) -> S3Error:
    """Any exception, as S3 would say it. Unexpected ones are logged and get a reference."""
    if isinstance(error, S3Error):
        return error
    known = as_serving_error(error)
    return S3Error(_code_of(known), known.detail, retry_after_s=known.retry_after_s)


def _code_of(error: ServingError) -> str:
    if isinstance(error, ValidationError):
        if error.param == "bucket_name":
            return "InvalidBucketName"
        return (
            "KeyTooLongError"
            if re.search(r"at most \d+ bytes", error.detail)
            else "InvalidArgument"
        )
    for kind, code in _CODE_OF.items():
        if isinstance(error, kind):
            return code
    return "ServiceUnavailable" if isinstance(error, ServiceUnavailableError) else "InternalError"
