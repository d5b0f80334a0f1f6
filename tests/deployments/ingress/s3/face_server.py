"""The S3 face on a real socket, in a thread of its own, and real boto3 clients for it."""

import asyncio
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api_keys import ApiKeys, hash_key
from cluster.config import ApiKeyConfig
from cluster.object_store import S3_FACE_PATH
from cluster.storage.folder_store import FolderStore
from cluster.tenant_config import TenantsConfig
from cluster.tenants.key_directory import KeyDirectory
from cluster.types import BucketRef
from deployments.http_listener import HTTPListener
from deployments.ingress.errors import ClientLeftError
from deployments.ingress.s3.face import S3Face

KEY = "shoal-test-key"
OTHER_KEY = "shoal-other/key,=+"  # any visible characters
OTHER_TENANT = "other"
MAX_OBJECT_BYTES = 80 * 2**20


@dataclass
class FaceServer:
    """A running face and what a test needs of it."""

    port: int
    root: Path
    face: S3Face
    changes: list[BucketRef] = field(default_factory=list)
    #: (method and path, the exception that came out of the face or None) of each that ended.
    ended: queue.Queue[tuple[str, BaseException | None]] = field(default_factory=queue.Queue)
    change_error: Exception | None = None
    other_paths: ASGIApp | None = None  # what answers beside the face

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{S3_FACE_PATH}"

    def boto(self, key: str = KEY, secret: str | None = None, **config: Any) -> Any:
        retries = {"max_attempts": 1, "mode": "standard"}
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret or key,
            config=Config(retries=retries, s3={"addressing_style": "path"}, **config),
        )

    def http(self, key: str | None = KEY) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def send_raw(self, head: str, body: bytes = b"") -> socket.socket:
        """A connection on which a request was sent as it is written down, key included."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        lines = [*head.strip().splitlines(), "Host: localhost", f"Authorization: Bearer {KEY}"]
        connection.sendall("\r\n".join([*map(str.strip, lines), "", ""]).encode() + body)
        return connection

    def end_of(self, call: str) -> BaseException | None:
        """Wait until a request like `GET /docs/x` has ended; the exception that it ended with."""
        method, _, path = call.partition(" ")
        while True:
            ended, error = self.ended.get(timeout=120)
            if ended == f"{method} {S3_FACE_PATH}{path}":
                return error

    def files(self, *, private: bool = True) -> list[str]:
        """Every file below the root; `private`: those of the store itself, too."""
        paths = (path for path in self.root.rglob("*") if path.is_file())
        names = sorted(str(path.relative_to(self.root)) for path in paths)
        return [name for name in names if private or "/.shoal/" not in name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if self.other_paths is not None and not scope["path"].startswith(S3_FACE_PATH):
            await self.other_paths(scope, receive, send)
            return
        ended: BaseException | None = None
        try:
            await self.face(scope, receive, send)
        except ClientLeftError as error:  # which the boundary around the face takes
            ended = error
        except BaseException as error:
            ended = error
            raise
        finally:
            self.ended.put((f"{scope['method']} {scope['path']}", ended))


def error_of(caught: Any) -> tuple[str, int]:
    """The code and status of a botocore ClientError."""
    response: Mapping[str, Any] = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


@contextmanager
def serving_face(root: Path, *, keys_required: bool = True) -> Iterator[FaceServer]:
    keys = ApiKeys(
        [
            ApiKeyConfig(name="test", sha256=hash_key(KEY)),
            ApiKeyConfig(name="other", sha256=hash_key(OTHER_KEY), tenant=OTHER_TENANT),
        ],
        required=keys_required,
    )
    directory = KeyDirectory(keys, TenantsConfig())
    store = FolderStore(root)
    listening = socket.create_server(("127.0.0.1", 0))

    async def on_change(ref: BucketRef) -> None:
        server.changes.append(ref)
        if server.change_error is not None:
            raise server.change_error

    face = S3Face(store, directory, on_change=on_change, max_object_bytes=MAX_OBJECT_BYTES)
    server = FaceServer(port=listening.getsockname()[1], root=root, face=face)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        listener = HTTPListener(server, listening)
        listener.start()
        await stop.wait()
        await listener.drain()
        await store.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=120)
        loop.close()
