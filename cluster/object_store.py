"""Objects, the files of buckets: one interface to a folder and to an S3-compatible endpoint."""

import os
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from cluster.config import ConfigError, StorageConfig
from cluster.storage.folder_store import NO_HEADERS, FolderStore
from cluster.storage.s3_store import S3Endpoint, S3Store
from cluster.storage.signature import Credentials
from cluster.storage.stored_object import BucketInfo, ObjectInfo, OpenObject
from cluster.types import BucketRef

FOLDER_NAME = "storage"  # in SHOAL_HOME
S3_FACE_PATH = "/v2/storage/s3"  # where the ingress offers a folder's objects


class ObjectStore(Protocol):
    """Buckets of tenants and the objects in them.

    Every call may raise ServiceUnavailableError: the endpoint is away (with `retry_after_s`), its
    credentials are wrong, or a file may not be read; and BucketNotFoundError.
    """

    async def list_buckets(self, tenant: str) -> list[BucketInfo] | None:
        """By name; None: this store cannot tell."""
        ...

    async def bucket_exists(self, ref: BucketRef) -> bool: ...

    async def create_bucket(self, ref: BucketRef) -> None:
        """
        Raises:
            ValidationError: a bucket cannot be called so.
            BucketExistsError: it is there already.
        """
        ...

    async def delete_bucket(self, ref: BucketRef) -> None:
        """
        Raises:
            BucketNotEmptyError: it has objects.
        """
        ...

    def list_objects(self, ref: BucketRef, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Ordered by the keys' UTF-8 bytes, a page at a time."""
        ...

    async def head(self, ref: BucketRef, key: str) -> ObjectInfo:
        """
        Raises:
            ObjectNotFoundError: there is none.
        """
        ...

    def open(self, ref: BucketRef, key: str) -> AbstractAsyncContextManager[OpenObject]:
        """An object to read, in flat memory; its `info` is that of the very bytes that are read.

        Raises:
            ObjectNotFoundError: there is none; or, midway, it was replaced.
        """
        ...

    async def get(self, ref: BucketRef, key: str, *, max_bytes: int) -> tuple[ObjectInfo, bytes]:
        """
        Raises:
            ObjectNotFoundError: there is none.
            ObjectTooLargeError: it has more than `max_bytes`.
        """
        ...

    async def put(
        self,
        ref: BucketRef,
        key: str,
        content: bytes | AsyncIterable[bytes],
        *,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> ObjectInfo:
        """Store an object, whole or not at all, in flat memory. `headers`: content-type.

        Raises:
            ValidationError: no object can be called so.
            StorageFullError: there is no room.
        """
        ...

    async def delete(self, ref: BucketRef, key: str) -> None:
        """Delete an object, if it is there."""
        ...

    def url(self, ref: BucketRef, key: str) -> str:
        """What search results show as an object's source."""
        ...

    async def close(self) -> None:
        """Nothing else may be called afterwards."""
        ...


def open_object_store(config: StorageConfig, home: Path) -> ObjectStore:
    """The store of a configuration; `home` is SHOAL_HOME.

    Raises:
        ConfigError: there are no credentials for the endpoint.
    """
    if config.s3_endpoint is None:
        return open_folder_store(config, home)
    return S3Store(
        S3Endpoint(
            url=config.s3_endpoint.rstrip("/"),
            region=config.s3_region,
            credentials=_credentials(config),
            bucket_name=config.s3_bucket_name,
            is_virtual_hosted=config.s3_virtual_hosted_style,
        )
    )


def open_folder_store(config: StorageConfig, home: Path) -> FolderStore:
    """The folder of a configuration without an endpoint."""
    folder = home / FOLDER_NAME if config.folder is None else Path(config.folder).expanduser()
    return FolderStore(folder, base_url=S3_FACE_PATH)


def _credentials(config: StorageConfig) -> Credentials:
    if config.s3_access_key_id is not None and config.s3_secret_access_key is not None:
        return Credentials(
            access_key_id=config.s3_access_key_id,
            secret_access_key=config.s3_secret_access_key,
        )
    key_id = os.environ.get("AWS_ACCESS_KEY_ID")
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key_id or not secret:
        raise ConfigError(
            "storage.s3_endpoint needs credentials: give s3_access_key_id and "
            "s3_secret_access_key, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return Credentials(
        access_key_id=key_id,
        secret_access_key=secret,
        session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
    )
