import base64
import hashlib
import io
import resource
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from deployments.ingress.errors import ClientLeftError
from deployments.ingress.s3 import answers, payload
from tests.deployments.ingress.s3.face_server import MAX_OBJECT_BYTES, FaceServer, error_of

MEGABYTE = 2**20
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def chunked(*pieces: bytes, trailer: str = "", signature: str = "") -> bytes:
    """The aws-chunked encoding of some pieces."""
    chunks = [f"{len(piece):x}{signature}\r\n".encode() + piece + b"\r\n" for piece in pieces]
    return b"".join(chunks) + f"0{signature}\r\n{trailer}\r\n".encode()


def put_chunked(server: FaceServer, body: bytes, **headers: str) -> httpx.Response:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    fields.setdefault("x-amz-content-sha256", UNSIGNED_TRAILER)
    with server.http() as client:
        return client.put("/docs/x", content=body, headers=fields)


def code_of(response: httpx.Response) -> str:
    return response.text.partition("<Code>")[2].partition("</Code>")[0]


@pytest.mark.parametrize("signature", ["", f";chunk-signature={'0' * 64}", ";some=extension;other"])
def test_aws_chunked_bodies_are_unwrapped(server: FaceServer, s3: Any, signature: str) -> None:
    data = [b"hello ", b"w" * 70_000, b"\r\n0\r\n\r\n"]
    response = put_chunked(
        server,
        chunked(*data, trailer=f"x-amz-checksum-crc32:{crc32(b''.join(data))}\r\n",
                signature=signature),
        x_amz_trailer="x-amz-checksum-crc32",
        x_amz_decoded_content_length=str(sum(map(len, data))),
        content_encoding="aws-chunked,gzip",
    )  # fmt: skip
    assert response.status_code == 200, response.text
    assert response.headers["x-amz-checksum-crc32"] == crc32(b"".join(data))
    found = s3.get_object(Bucket="docs", Key="x")
    assert found["Body"].read() == b"".join(data)
    assert found["ContentEncoding"] == "gzip"


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
@pytest.mark.parametrize("calculation", ["when_supported", "when_required"])
def test_boto3s_checksums_are_checked_and_answered(
    server: FaceServer, s3: Any, algorithm: str, calculation: str
) -> None:
    client = server.boto(request_checksum_calculation=calculation)
    answer = client.put_object(
        Bucket="docs", Key="x", Body=io.BytesIO(b"x" * 100_000), ChecksumAlgorithm=algorithm
    )
    assert answer[f"Checksum{algorithm}"]
    assert client.get_object(Bucket="docs", Key="x")["Body"].read() == b"x" * 100_000


def test_a_file_that_cannot_be_rewound_is_taken(server: FaceServer, s3: Any) -> None:
    response = put_chunked(
        server, chunked(b"abc"), x_amz_decoded_content_length="3", content_encoding="aws-chunked"
    )
    assert response.status_code == 200
    with server.http() as client:
        assert client.put("/docs/y", content=iter([b"a", b"b" * 100_000])).status_code == 200
    assert s3.head_object(Bucket="docs", Key="y")["ContentLength"] == 100_001


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "IncompleteBody"),
        (b"3\r\nabc", "IncompleteBody"),
        (b"3\r\nabc\r\n", "IncompleteBody"),
        (b"3\r\nabc\r\n0\r\n", "IncompleteBody"),
        (b"5\r\nabc\r\n0\r\n\r\n", "InvalidRequest"),
        (b"2\r\nabc\r\n0\r\n\r\n", "InvalidRequest"),
        (b"zz\r\nabc\r\n0\r\n\r\n", "InvalidRequest"),
        (b"-1\r\nabc\r\n0\r\n\r\n", "InvalidRequest"),
        (b"\r\n", "InvalidRequest"),
        (b"f" * 17 + b"\r\n", "InvalidRequest"),
        (b"3;" + b"x" * 5000 + b"\r\nabc\r\n0\r\n\r\n", "InvalidRequest"),
        (b"0\r\nno trailer\r\n\r\n", "InvalidRequest"),
        (b"0\r\n" + b"a:b\r\n" * 100 + b"\r\n", "InvalidRequest"),
        (chunked(b"abcd"), "IncompleteBody"),  # three bytes were announced
        (b"5000000f\r\n" + b"x" * 100, "IncompleteBody"),
    ],
)
def test_bodies_that_are_not_well_chunked_are_refused(
    server: FaceServer, s3: Any, body: bytes, code: str
) -> None:
    response = put_chunked(server, body, x_amz_decoded_content_length="3")
    assert (response.status_code, code_of(response)) == (400, code)
    assert server.files() == []


def test_trailers_that_were_announced_must_come_and_be_right(server: FaceServer, s3: Any) -> None:
    name = "x-amz-checksum-crc32"
    missing = put_chunked(server, chunked(b"abc"), x_amz_trailer=name)
    assert code_of(missing) == "InvalidRequest"
    wrong = chunked(b"abc", trailer=f"{name}:{crc32(b'abd')}\r\n")
    assert code_of(put_chunked(server, wrong, x_amz_trailer=name)) == "BadDigest"
    not_base64 = chunked(b"abc", trailer=f"{name}:***\r\n")
    assert code_of(put_chunked(server, not_base64, x_amz_trailer=name)) == "InvalidDigest"
    assert server.files() == []


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("content-md5", base64.b64encode(hashlib.md5(b"other").digest()).decode(), "BadDigest"),
        ("content-md5", "bm90IG9uZQ==", "InvalidDigest"),
        ("content-md5", "***", "InvalidDigest"),
        ("x-amz-checksum-crc32", crc32(b"other"), "BadDigest"),
        ("x-amz-content-sha256", "0" * 64, "XAmzContentSHA256Mismatch"),
        ("x-amz-content-sha256", "z" * 64, "InvalidArgument"),
        ("x-amz-content-sha256", "something", "InvalidArgument"),
    ],
)
def test_a_body_that_is_not_what_it_is_said_to_be_is_not_kept(
    server: FaceServer, s3: Any, header: str, value: str, code: str
) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"old")
    with server.http() as client:
        response = client.put("/docs/x", content=b"body", headers={header: value})
    assert (response.status_code, code_of(response)) == (400, code)
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"old"
    assert server.files() == ["default/docs/x"]


def test_checksums_that_are_not_checked_are_taken_as_they_are(server: FaceServer, s3: Any) -> None:
    response = put_chunked(
        server,
        chunked(b"abc", trailer="x-amz-checksum-crc64nvme:AAAAAAAAAAA=\r\n"),
        x_amz_trailer="x-amz-checksum-crc64nvme",
    )
    assert response.status_code == 200
    assert "x-amz-checksum-crc64nvme" not in response.headers


def test_a_right_md5_and_sha256_are_taken(server: FaceServer, s3: Any) -> None:
    headers = {
        "content-md5": base64.b64encode(hashlib.md5(b"body").digest()).decode(),
        "x-amz-content-sha256": hashlib.sha256(b"body").hexdigest(),
    }
    with server.http() as client:
        assert client.put("/docs/x", content=b"body", headers=headers).status_code == 200


def test_objects_over_the_limit_are_refused_before_they_are_sent(
    server: FaceServer, s3: Any
) -> None:
    head = f"""PUT /v2/storage/s3/docs/x HTTP/1.1
        Content-Length: {MAX_OBJECT_BYTES + 1}
        Expect: 100-continue"""
    with server.send_raw(head) as connection:
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"EntityTooLarge" in answer
    assert b"100 Continue" not in answer


def test_a_length_that_no_object_has_is_refused_as_one(server: FaceServer) -> None:
    response = put_chunked(server, chunked(b"abc"), x_amz_decoded_content_length="9" * 5000)
    assert (response.status_code, code_of(response)) == (400, "InvalidArgument")


def test_objects_over_the_limit_without_a_length_are_refused_when_they_are_over(
    server: FaceServer, s3: Any
) -> None:
    pieces = (bytes(MEGABYTE) for _ in range(MAX_OBJECT_BYTES // MEGABYTE + 1))
    with server.http() as client:
        response = client.put("/docs/x", content=pieces)
    assert (response.status_code, code_of(response)) == (400, "EntityTooLarge")
    assert server.files() == []


def test_who_expects_100_continue_gets_it(server: FaceServer, s3: Any) -> None:
    head = """PUT /v2/storage/s3/docs/x HTTP/1.1
        Content-Length: 3
        Expect: 100-continue
        Connection: close"""
    with server.send_raw(head) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b"abc")
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 200 OK")
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"abc"


def test_a_client_that_leaves_midway_leaves_nothing_behind(server: FaceServer, s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"old")
    upload = s3.create_multipart_upload(Bucket="docs", Key="y")["UploadId"]
    assert server.end_of("PUT /docs/x") is None
    for target in ("x", "new", f"y?uploadId={upload}&partNumber=1"):
        head = f"PUT /v2/storage/s3/docs/{target} HTTP/1.1\nContent-Length: 50000000"
        server.send_raw(head, bytes(3 * MEGABYTE)).close()
        path = target.partition("?")[0]
        assert isinstance(server.end_of(f"PUT /docs/{path}"), ClientLeftError)
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"old"
    expected = [f"default/.shoal/uploads/docs/{upload}/upload.json"]
    assert server.files() == [*expected, "default/docs/x"]


def test_a_client_that_leaves_a_download_ends_it(server: FaceServer, s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=bytes(64 * MEGABYTE))
    connection = server.send_raw("GET /v2/storage/s3/docs/x HTTP/1.1")
    assert connection.recv(1000)
    connection.close()
    assert isinstance(server.end_of("GET /docs/x"), ClientLeftError)


def test_clients_that_neither_send_nor_read_are_given_up(
    server: FaceServer, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=bytes(64 * MEGABYTE))
    monkeypatch.setattr(answers, "IDLE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(payload, "IDLE_TIMEOUT_S", 0.1)
    with server.send_raw("GET /v2/storage/s3/docs/x HTTP/1.1"):
        assert isinstance(server.end_of("GET /docs/x"), ClientLeftError)
    head = "PUT /v2/storage/s3/docs/y HTTP/1.1\nContent-Length: 1000"
    with server.send_raw(head, b"x") as connection:
        answer = connection.makefile("rb").read()
    assert b"<Code>RequestTimeout</Code>" in answer
    assert server.files() == ["default/docs/x"]


def test_slow_clients_do_not_hold_others_up(server: FaceServer, s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=bytes(64 * MEGABYTE))
    slow: list[socket.socket] = []
    for number in range(40):  # more than the store has threads
        head = f"PUT /v2/storage/s3/docs/slow{number} HTTP/1.1\nContent-Length: 1000000"
        slow.append(server.send_raw(head, b"x" * 1000))
        slow.append(server.send_raw("GET /v2/storage/s3/docs/x HTTP/1.1"))
    s3.put_object(Bucket="docs", Key="quick", Body=b"x")
    assert s3.get_object(Bucket="docs", Key="quick")["Body"].read() == b"x"
    for connection in slow:
        connection.close()


def test_large_uploads_and_downloads_take_flat_memory(server: FaceServer, s3: Any) -> None:
    piece = bytes(MEGABYTE)

    def there_and_back(num_pieces: int) -> None:
        with server.http() as client:
            sent = client.put("/docs/large", content=(piece for _ in range(num_pieces)))
            assert sent.status_code == 200
            with client.stream("GET", "/docs/large") as response:
                received = sum(len(data) for data in response.iter_raw())
        assert received == num_pieces * MEGABYTE

    there_and_back(4)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    there_and_back(64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 24 * 1024


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The system refuses to write more, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_and_nothing_is_left(server: FaceServer, s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"old")
    upload = s3.create_multipart_upload(Bucket="docs", Key="y")["UploadId"]
    part = {"Bucket": "docs", "Key": "y", "UploadId": upload, "PartNumber": 1}
    data = bytes(4 * MEGABYTE)
    with files_of_at_most(3 * MEGABYTE):
        for call in (
            lambda: s3.put_object(Bucket="docs", Key="x", Body=data),
            lambda: s3.upload_part(**part, Body=data),
        ):
            with pytest.raises(ClientError, match="disk of the object store is full") as caught:
                call()
            assert error_of(caught) == ("StorageFull", 507)
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"old"
    assert server.files() == [f"default/.shoal/uploads/docs/{upload}/upload.json", "default/docs/x"]
