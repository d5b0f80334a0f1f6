"""The headers of an upload: which are kept with the object, and which are refused by name.

A header that would change what happens and does not here is refused, not ignored.
"""

from collections.abc import Mapping

from deployments.ingress.s3.errors import S3Error, not_implemented

MAX_HEADER_BYTES = 2048  # all together; S3's limit for metadata, and what a file's record can hold
DEFAULT_CONTENT_TYPE = "binary/octet-stream"
METADATA_PREFIX = "x-amz-meta-"
_KEPT = ("cache-control", "content-disposition", "content-language", "content-type", "expires")
_REFUSED = (
    "x-amz-grant-",
    "x-amz-server-side-encryption",
    "x-amz-tagging",
    "x-amz-object-lock-",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
    "x-amz-copy-source-if-",
    "x-amz-copy-source-server-side-encryption",
)
_ONLY = {
    "x-amz-acl": ("private", "bucket-owner-full-control"),
    "x-amz-storage-class": ("STANDARD",),
}


def check_headers(headers: Mapping[str, str]) -> None:
    """
    Raises:
        S3Error: NotImplemented, naming the header.
    """
    for name, value in headers.items():
        if name.startswith(_REFUSED):
            raise not_implemented(f"The header {name}")
        if name in _ONLY and value not in _ONLY[name]:
            raise not_implemented(f"{name}: {value[:40]}")


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What an object's answers will have.

    Raises:
        S3Error: MetadataTooLarge.
    """
    kept = {
        name: value
        for name, value in headers.items()
        if name in _KEPT or name.startswith(METADATA_PREFIX)
    }
    encodings = [token.strip() for token in headers.get("content-encoding", "").split(",")]
    if stored := [token for token in encodings if token not in ("", "aws-chunked")]:
        kept["content-encoding"] = ",".join(stored)
    num_bytes = sum(len(name) + len(value.encode()) for name, value in kept.items())
    if num_bytes > MAX_HEADER_BYTES:
        raise S3Error(
            "MetadataTooLarge", f"The headers to keep have {num_bytes} of {MAX_HEADER_BYTES} bytes."
        )
    return kept
