import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage.names import MAX_SEGMENT_BYTES, key_problem
from tests.deployments.ingress.s3.face_server import FaceServer, error_of, serving_face

STRANGE_KEYS = [
    "with space",
    "a+b",
    "100%",
    "a%2Fb",
    "a%20b",
    "ünïcödé/日本語 🐟.txt",
    "e\u0301 is not é",
    "q?a=b&c",
    "hash#1",
    "semi;colon,comma=equals",
    "quo'te\"s",
    "<xml>&amp;",
    "back\\slash",
    "~tilde",
    "*.txt",
    "(paren)!",
    ".hidden/.git",
    "...",
    "\u2028line",
    "x" * 255,
    "/".join(["d" * 60] * 16),
]


def test_an_object_comes_back_with_everything_it_was_put_with(s3: Any) -> None:
    put = s3.put_object(
        Bucket="docs",
        Key="a/b.md",
        Body=b"# Hello",
        ContentType="text/markdown",
        ContentDisposition='attachment; filename="b.md"',
        CacheControl="no-store",
        Metadata={"author": "ada", "empty": ""},
    )
    found = s3.get_object(Bucket="docs", Key="a/b.md")
    head = s3.head_object(Bucket="docs", Key="a/b.md")
    assert found["Body"].read() == b"# Hello"
    for answer in (found, head):
        assert answer["ContentLength"] == 7
        assert answer["ContentType"] == "text/markdown"
        assert answer["ContentDisposition"] == 'attachment; filename="b.md"'
        assert answer["CacheControl"] == "no-store"
        assert answer["Metadata"] == {"author": "ada", "empty": ""}
        assert answer["ETag"] == put["ETag"] == f'"{hashlib.md5(b"# Hello").hexdigest()}"'
        assert answer["AcceptRanges"] == "bytes"
    assert found["LastModified"] == head["LastModified"]


def test_an_object_without_headers_has_s3s_content_type(s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"")
    found = s3.get_object(Bucket="docs", Key="x", ResponseContentType="text/plain")
    assert found["ContentType"] == "text/plain"
    assert s3.head_object(Bucket="docs", Key="x")["ContentType"] == "binary/octet-stream"


@pytest.mark.parametrize("key", STRANGE_KEYS)
def test_strange_keys_come_back_as_they_went(server: FaceServer, s3: Any, key: str) -> None:
    s3.put_object(Bucket="docs", Key=key, Body=key.encode())
    assert s3.get_object(Bucket="docs", Key=key)["Body"].read() == key.encode()
    listed = s3.list_objects_v2(Bucket="docs")["Contents"]
    assert [item["Key"] for item in listed] == [key]
    assert [item["Key"] for item in s3.list_objects(Bucket="docs")["Contents"]] == [key]
    assert server.files() == [f"default/docs/{key}"]
    s3.delete_object(Bucket="docs", Key=key)
    assert server.files() == []
    assert os.listdir(server.root / "default" / "docs") == []


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "a//b", "/x", "x/", "./x", "a/.", "tab\tx", "nl\nx", "nul\0x"]
)
def test_keys_that_no_object_can_have_are_refused_and_never_found(
    server: FaceServer, s3: Any, key: str
) -> None:
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket="docs", Key=key, Body=b"x")
    assert error_of(caught) == ("InvalidArgument", 400)
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket="docs", Key=key)
    assert error_of(caught) == ("NoSuchKey", 404)
    s3.delete_object(Bucket="docs", Key=key)
    assert server.files() == []


def test_keys_that_are_too_long_are_refused(server: FaceServer, s3: Any) -> None:
    for key in ("x" * 256, "/".join(["x" * 100] * 11)):
        with pytest.raises(ClientError) as caught:
            s3.put_object(Bucket="docs", Key=key, Body=b"x")
        assert error_of(caught) == ("KeyTooLongError", 400)


def test_no_path_leads_out_of_the_bucket(server: FaceServer, s3: Any) -> None:
    server.boto().create_bucket(Bucket="secret")
    s3.put_object(Bucket="secret", Key="x", Body=b"secret")
    for path in ("/docs/../secret/x", "/docs/%2e%2e/secret/x", "/docs/..%2fsecret/x"):
        connection = server.send_raw(f"GET /v2/storage/s3{path} HTTP/1.1\nConnection: close")
        answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))  # type: ignore[misc]
        assert b"404 Not Found" in answer.splitlines()[0]
        connection.close()


@pytest.fixture(scope="module")
def lasting_s3() -> Any:
    with tempfile.TemporaryDirectory() as folder, serving_face(Path(folder)) as server:
        client = server.boto()
        client.create_bucket(Bucket="docs")
        yield client


def can_be_a_file(key: str) -> bool:
    return key_problem(key) is None and all(
        len(segment.encode()) <= MAX_SEGMENT_BYTES for segment in key.split("/")
    )


@given(st.text(min_size=1, max_size=60).filter(can_be_a_file))
@settings(max_examples=60)
def test_any_key_that_is_taken_comes_back(lasting_s3: Any, key: str) -> None:
    lasting_s3.put_object(Bucket="docs", Key=key, Body=b"x")
    try:
        assert lasting_s3.get_object(Bucket="docs", Key=key)["Body"].read() == b"x"
        listed = lasting_s3.list_objects_v2(Bucket="docs", Prefix=key)["Contents"]
        assert [item["Key"] for item in listed] == [key]
    finally:
        lasting_s3.delete_object(Bucket="docs", Key=key)


def test_an_object_cannot_be_a_folder_too(s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="a/b", Body=b"x")
    s3.put_object(Bucket="docs", Key="c", Body=b"x")
    for key in ("a", "c/d"):
        with pytest.raises(ClientError, match="different names") as caught:
            s3.put_object(Bucket="docs", Key=key, Body=b"x")
        assert error_of(caught) == ("InvalidArgument", 400)
    assert s3.get_object(Bucket="docs", Key="a/b")["Body"].read() == b"x"


@pytest.mark.parametrize(
    ("wanted", "expected", "content_range"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=3-6", b"3456", "bytes 3-6/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=7-999", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=-999", b"0123456789", "bytes 0-9/10"),
        ("bytes=5-3", b"0123456789", None),
        ("bytes=0-1,3-4", b"0123456789", None),
        ("lines=1-2", b"0123456789", None),
        (f"bytes=0-{'9' * 5000}", b"0123456789", None),  # no number of bytes
    ],
)
def test_a_range_is_answered_with_its_bytes(
    s3: Any, wanted: str, expected: bytes, content_range: str | None
) -> None:
    s3.put_object(Bucket="docs", Key="digits", Body=b"0123456789")
    found = s3.get_object(Bucket="docs", Key="digits", Range=wanted)
    assert found["Body"].read() == expected
    assert found.get("ContentRange") == content_range
    status = found["ResponseMetadata"]["HTTPStatusCode"]
    assert status == (200 if content_range is None else 206)
    head = s3.head_object(Bucket="docs", Key="digits", Range=wanted)
    assert head["ContentLength"] == len(expected)


def test_a_range_behind_the_end_cannot_be_satisfied(s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="digits", Body=b"0123456789")
    for wanted in ("bytes=10-", "bytes=-0"):
        with pytest.raises(ClientError) as caught:
            s3.get_object(Bucket="docs", Key="digits", Range=wanted)
        assert error_of(caught) == ("InvalidRange", 416)


def test_conditions_on_reading_are_kept(s3: Any) -> None:
    put = s3.put_object(Bucket="docs", Key="x", Body=b"one")
    etag, other = put["ETag"], '"0123"'
    modified = s3.head_object(Bucket="docs", Key="x")["LastModified"]
    read = {"Bucket": "docs", "Key": "x"}
    assert s3.get_object(**read, IfMatch=etag)["Body"].read() == b"one"
    assert s3.get_object(**read, IfMatch=f"{other}, {etag}")["Body"].read() == b"one"
    assert s3.get_object(**read, IfNoneMatch=other)["Body"].read() == b"one"
    assert s3.get_object(**read, IfUnmodifiedSince=modified)["Body"].read() == b"one"
    for condition in ({"IfNoneMatch": etag}, {"IfModifiedSince": modified}):
        for call in (s3.get_object, s3.head_object):
            with pytest.raises(ClientError) as caught:
                call(**read, **condition)
            assert error_of(caught) == ("304", 304)
    with pytest.raises(ClientError) as caught:
        s3.get_object(**read, IfMatch=other)
    assert error_of(caught) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as caught:
        s3.get_object(**read, IfUnmodifiedSince=modified.replace(year=2001))
    assert error_of(caught) == ("PreconditionFailed", 412)


def test_a_put_that_is_to_be_the_first_is_refused_when_it_is_not(s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"one", IfNoneMatch="*")
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket="docs", Key="x", Body=b"two", IfNoneMatch="*")
    assert error_of(caught) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket="docs", Key="x", Body=b"two", IfMatch='"0123"')
    assert error_of(caught) == ("NotImplemented", 501)
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"one"


def test_missing_objects_are_named(s3: Any) -> None:
    with pytest.raises(ClientError, match=r"no object 'a/b' in the bucket 'docs'") as caught:
        s3.get_object(Bucket="docs", Key="a/b")
    assert error_of(caught) == ("NoSuchKey", 404)
    with pytest.raises(ClientError) as caught:
        s3.head_object(Bucket="docs", Key="a/b")
    assert error_of(caught) == ("404", 404)
    assert s3.delete_object(Bucket="docs", Key="a/b")["ResponseMetadata"]["HTTPStatusCode"] == 204


def test_objects_are_copied_with_their_headers_or_with_new_ones(s3: Any) -> None:
    s3.create_bucket(Bucket="archive")
    s3.put_object(
        Bucket="docs", Key="a b+ü", Body=b"x", ContentType="text/css", Metadata={"a": "1"}
    )
    source = {"Bucket": "docs", "Key": "a b+ü"}
    copied = s3.copy_object(Bucket="archive", Key="copy", CopySource=source)
    found = s3.get_object(Bucket="archive", Key="copy")
    assert found["Body"].read() == b"x"
    assert found["ETag"] == copied["CopyObjectResult"]["ETag"]
    assert (found["ContentType"], found["Metadata"]) == ("text/css", {"a": "1"})
    s3.copy_object(
        Bucket="docs",
        Key="a b+ü",
        CopySource=source,
        MetadataDirective="REPLACE",
        Metadata={"b": "2"},
    )
    assert s3.head_object(Bucket="docs", Key="a b+ü")["Metadata"] == {"b": "2"}
    with pytest.raises(ClientError) as caught:
        s3.copy_object(Bucket="docs", Key="y", CopySource="docs/missing")
    assert error_of(caught) == ("NoSuchKey", 404)


def test_headers_that_cannot_be_kept_are_refused(s3: Any) -> None:
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket="docs", Key="x", Body=b"", Metadata={"a": "b" * 2048})
    assert error_of(caught) == ("MetadataTooLarge", 400)


def test_files_that_are_copied_into_the_folder_are_objects(server: FaceServer, s3: Any) -> None:
    folder = server.root / "default" / "docs" / "by hand"
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"one")
    first = s3.get_object(Bucket="docs", Key="by hand/notes.txt")
    assert first["Body"].read() == b"one"
    (folder / "notes.txt").write_bytes(b"two!")
    assert s3.head_object(Bucket="docs", Key="by hand/notes.txt")["ETag"] != first["ETag"]
    s3.put_object(Bucket="docs", Key="by hand/notes.txt", Body=b"put", Metadata={"a": "1"})
    (folder / "notes.txt").write_bytes(b"edited")
    edited = s3.get_object(Bucket="docs", Key="by hand/notes.txt")
    assert edited["ETag"] != f'"{hashlib.md5(b"put").hexdigest()}"'
    assert edited["Metadata"] == {}
    assert edited["Body"].read() == b"edited"
    (server.root / "default" / "by-hand").mkdir()
    assert "by-hand" in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]


def test_links_are_no_objects_and_lead_nowhere(server: FaceServer, s3: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    bucket = server.root / "default" / "docs"
    (bucket / "file").symlink_to(outside / "secret")
    (bucket / "folder").symlink_to(outside)
    (bucket / "inside").symlink_to(bucket)
    (server.root / "default" / "linked-bucket").symlink_to(outside)
    os.mkfifo(bucket / "pipe")
    assert s3.list_objects_v2(Bucket="docs")["KeyCount"] == 0
    assert s3.list_objects_v2(Bucket="docs", Prefix="folder/")["KeyCount"] == 0
    for key in ("file", "folder/secret", "inside/file", "pipe"):
        for call in (s3.get_object, s3.head_object):
            with pytest.raises(ClientError) as caught:
                call(Bucket="docs", Key=key)
            assert error_of(caught)[1] == 404
    with pytest.raises(ClientError):
        s3.put_object(Bucket="docs", Key="folder/new", Body=b"x")
    s3.delete_object(Bucket="docs", Key="folder/secret")
    with pytest.raises(ClientError):
        s3.list_objects_v2(Bucket="linked-bucket")
    s3.put_object(Bucket="docs", Key="file", Body=b"replaces the link")
    assert (outside / "secret").read_text() == "secret"
    assert os.listdir(outside) == ["secret"]
