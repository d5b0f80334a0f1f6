from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.ingress.s3.face_server import FaceServer, serving_face


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaceServer]:
    with serving_face(tmp_path / "storage") as started:
        yield started


@pytest.fixture
def s3(server: FaceServer) -> Any:
    """A boto3 client, and a bucket `docs`."""
    client = server.boto()
    client.create_bucket(Bucket="docs")
    return client
