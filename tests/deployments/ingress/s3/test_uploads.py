import hashlib
import io
import os
import shutil
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from cluster.storage import folder_uploads
from cluster.storage.folder_store import FolderStore
from tests.deployments.ingress.s3.face_server import MAX_OBJECT_BYTES, FaceServer, error_of

MEGABYTE = 2**20


def begin(s3: Any, key: str = "large", **how: Any) -> dict[str, str]:
    upload = s3.create_multipart_upload(Bucket="docs", Key=key, **how)
    return {"Bucket": "docs", "Key": key, "UploadId": upload["UploadId"]}


def put_part(s3: Any, upload: dict[str, str], number: int, body: bytes) -> dict[str, Any]:
    part = s3.upload_part(**upload, PartNumber=number, Body=body)
    return {"PartNumber": number, "ETag": part["ETag"]}


def complete(s3: Any, upload: dict[str, str], *parts: dict[str, Any]) -> Any:
    return s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": list(parts)})


def test_three_parts_become_one_object(server: FaceServer, s3: Any) -> None:
    bodies = [os.urandom(5 * MEGABYTE), os.urandom(5 * MEGABYTE), b"the end"]
    upload = begin(s3, ContentType="text/x", Metadata={"a": "1"})
    parts = [put_part(s3, upload, number, body) for number, body in enumerate(bodies, 1)]
    assert server.files(private=False) == []
    done = complete(s3, upload, *parts)
    found = s3.get_object(Bucket="docs", Key="large")
    assert found["Body"].read() == b"".join(bodies)
    digests = b"".join(hashlib.md5(body).digest() for body in bodies)
    assert done["ETag"] == found["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    assert (found["ContentType"], found["Metadata"]) == ("text/x", {"a": "1"})
    assert server.files() == ["default/docs/large"]
    assert [ref.name for ref in server.changes] == ["docs"]


def test_boto3s_own_transfers_work_in_both_directions(s3: Any) -> None:
    data = os.urandom(20 * MEGABYTE)
    config = TransferConfig(multipart_threshold=6 * MEGABYTE, multipart_chunksize=6 * MEGABYTE)
    s3.upload_fileobj(io.BytesIO(data), "docs", "a/data.bin", Config=config)
    received = io.BytesIO()
    s3.download_fileobj("docs", "a/data.bin", received, Config=config)
    assert received.getvalue() == data


def test_parts_may_come_in_any_order_and_again(s3: Any) -> None:
    upload = begin(s3)
    second = put_part(s3, upload, 2, b"b")
    put_part(s3, upload, 1, b"wrong")
    first = put_part(s3, upload, 1, b"a")
    listed = s3.list_parts(**upload)["Parts"]
    assert [(part["PartNumber"], part["Size"]) for part in listed] == [(1, 1), (2, 1)]
    complete(s3, upload, first, second)
    assert s3.get_object(Bucket="docs", Key="large")["Body"].read() == b"ab"


def test_parts_that_are_not_chosen_are_left_out(server: FaceServer, s3: Any) -> None:
    upload = begin(s3)
    parts = [put_part(s3, upload, number, str(number).encode()) for number in (1, 5, 9)]
    complete(s3, upload, parts[0], parts[2])
    assert s3.get_object(Bucket="docs", Key="large")["Body"].read() == b"19"
    assert server.files() == ["default/docs/large"]


def test_lists_of_parts_and_uploads_come_in_pages(s3: Any) -> None:
    uploads = [begin(s3, key) for key in ("b", "a", "a", "c/d")]
    for number in range(1, 6):
        put_part(s3, uploads[0], number, b"x")
    pages = s3.get_paginator("list_parts").paginate(**uploads[0], PaginationConfig={"PageSize": 2})
    numbers = [[part["PartNumber"] for part in page["Parts"]] for page in pages]
    assert numbers == [[1, 2], [3, 4], [5]]
    pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket="docs", PaginationConfig={"PageSize": 1}
    )
    found = [(item["Key"], item["UploadId"]) for page in pages for item in page["Uploads"]]
    assert found == sorted((upload["Key"], upload["UploadId"]) for upload in uploads)
    prefixed = s3.list_multipart_uploads(Bucket="docs", Prefix="c/")["Uploads"]
    assert [item["Key"] for item in prefixed] == ["c/d"]


def test_an_aborted_upload_leaves_nothing(server: FaceServer, s3: Any) -> None:
    upload = begin(s3)
    part = put_part(s3, upload, 1, b"x")
    s3.abort_multipart_upload(**upload)
    assert server.files() == []
    for call in (
        lambda: put_part(s3, upload, 2, b"x"),
        lambda: complete(s3, upload, part),
        lambda: s3.list_parts(**upload),
        lambda: s3.abort_multipart_upload(**upload),
    ):
        with pytest.raises(ClientError) as caught:
            call()
        assert error_of(caught) == ("NoSuchUpload", 404)


def test_a_tenant_has_no_more_unended_uploads_than_are_kept(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_uploads, "MAX_UPLOADS", 2)
    s3.create_bucket(Bucket="archive")
    upload = begin(s3)
    s3.create_multipart_upload(Bucket="archive", Key="large")  # its other buckets count, too
    with pytest.raises(ClientError, match="2 multipart uploads are not ended") as caught:
        begin(s3)
    assert error_of(caught) == ("QuotaExceeded", 403)
    complete(s3, upload, put_part(s3, upload, 1, b"x"))
    begin(s3)


def test_an_upload_belongs_to_its_key_and_its_bucket(s3: Any) -> None:
    s3.create_bucket(Bucket="archive")
    upload = begin(s3)
    for wrong in ({"Key": "other"}, {"Bucket": "archive"}, {"UploadId": "../" + "0" * 29}):
        with pytest.raises(ClientError) as caught:
            put_part(s3, {**upload, **wrong}, 1, b"x")
        assert error_of(caught) == ("NoSuchUpload", 404)


def test_completing_twice_is_answered_twice(s3: Any) -> None:
    upload = begin(s3)
    part = put_part(s3, upload, 1, b"x")
    assert complete(s3, upload, part)["ETag"] == complete(s3, upload, part)["ETag"]


def test_wrong_parts_are_refused_and_the_upload_lives_on(s3: Any) -> None:
    upload = begin(s3)
    parts = [put_part(s3, upload, number, b"x") for number in (1, 2)]
    wrong = {
        "InvalidPart": [{"PartNumber": 3, "ETag": parts[0]["ETag"]}],
        "InvalidPartOrder": [parts[1], parts[0]],
        "MalformedXML": [],
    }
    for code, chosen in wrong.items():
        with pytest.raises(ClientError) as caught:
            complete(s3, upload, *chosen)
        assert error_of(caught) == (code, 400)
    with pytest.raises(ClientError) as caught:
        complete(s3, upload, {"PartNumber": 1, "ETag": '"not hexadecimal"'})
    assert error_of(caught) == ("InvalidPart", 400)
    complete(s3, upload, *parts)


@pytest.mark.parametrize("number", [0, 10_001])
def test_part_numbers_have_a_range(s3: Any, number: int) -> None:
    with pytest.raises(ClientError) as caught:
        put_part(s3, begin(s3), number, b"x")
    assert error_of(caught) == ("InvalidArgument", 400)


def test_parts_are_not_too_large_together(server: FaceServer, s3: Any) -> None:
    upload = begin(s3)
    data = bytes(MAX_OBJECT_BYTES // 2 + 1)
    parts = [put_part(s3, upload, number, data) for number in (1, 2)]
    with pytest.raises(ClientError) as caught:
        complete(s3, upload, *parts)
    assert error_of(caught) == ("EntityTooLarge", 400)
    assert server.files(private=False) == []


def test_copying_into_a_part_is_not_implemented(s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"x")
    with pytest.raises(ClientError) as caught:
        s3.upload_part_copy(**begin(s3), PartNumber=1, CopySource="docs/x")
    assert error_of(caught) == ("NotImplemented", 501)


def test_a_bucket_is_deleted_with_its_unfinished_uploads(server: FaceServer, s3: Any) -> None:
    put_part(s3, begin(s3), 1, b"x")
    s3.delete_bucket(Bucket="docs")
    assert server.files() == []


def test_what_nobody_comes_back_to_is_swept_away(server: FaceServer, s3: Any) -> None:
    upload, lasting = begin(s3), begin(s3)
    put_part(s3, upload, 1, b"x")
    private = server.root / "default" / ".shoal"
    (private / "staged" / "left-behind").write_bytes(b"x")
    folder = private / "uploads" / "docs" / upload["UploadId"]
    for path, age_s in ((private / "staged" / "left-behind", 25 * 3600), (folder, 8 * 24 * 3600)):
        then = path.stat().st_mtime - age_s
        os.utime(path, (then, then))
    FolderStore(server.root)
    assert server.files() == [f"default/.shoal/uploads/docs/{lasting['UploadId']}/upload.json"]
    shutil.rmtree(private)
