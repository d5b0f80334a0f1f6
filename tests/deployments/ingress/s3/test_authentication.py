from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.deployments.ingress.s3.face_server import (
    KEY,
    OTHER_KEY,
    FaceServer,
    error_of,
    serving_face,
)


def test_the_access_key_id_is_the_api_key_and_the_secret_is_not_looked_at(
    server: FaceServer,
) -> None:
    for secret in (KEY, "anything", " "):
        assert server.boto(KEY, secret).list_buckets()["Buckets"] == []


def test_a_wrong_key_is_refused(server: FaceServer) -> None:
    with pytest.raises(ClientError) as caught:
        server.boto("shoal-wrong", KEY).list_buckets()
    assert error_of(caught) == ("InvalidAccessKeyId", 403)
    with server.http("shoal-wrong") as client:
        assert client.get("/").status_code == 403


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Basic {KEY}",
        KEY,
        "AWS4-HMAC-SHA256 Credential=",
        f"AWS4-HMAC-SHA256 Credential={KEY}, SignedHeaders=host, Signature=0",
        f"Digest Credential={KEY}/20260101/us-east-1/s3/aws4_request",
    ],
)
def test_a_request_without_a_key_is_denied(server: FaceServer, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    with server.http(None) as client:
        for method, path in (("GET", "/"), ("PUT", "/docs"), ("GET", "/docs/x"), ("HEAD", "/d")):
            response = client.request(method, path, headers=headers)
            assert response.status_code == 403
            assert method == "HEAD" or "<Code>AccessDenied</Code>" in response.text
    assert server.files() == []


def test_a_bearer_token_opens_it_too(server: FaceServer) -> None:
    with server.http() as client:
        assert client.put("/docs").status_code == 200
        assert client.put("/docs/a.txt", content=b"hello").status_code == 200
        assert client.get("/docs/a.txt").content == b"hello"


def test_presigned_urls_are_refused_since_they_carry_the_key(server: FaceServer, s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"x")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "docs", "Key": "x"})
    with server.http(None) as client:
        response = client.get(url)
    assert response.status_code == 403
    assert "Presigned URLs carry" in response.text
    assert KEY not in response.text


def test_tenants_see_their_own_buckets_only(server: FaceServer, s3: Any) -> None:
    other = server.boto(OTHER_KEY)
    s3.put_object(Bucket="docs", Key="x", Body=b"mine")
    upload = s3.create_multipart_upload(Bucket="docs", Key="large")
    assert other.list_buckets()["Buckets"] == []
    for call in (
        lambda: other.get_object(Bucket="docs", Key="x"),
        lambda: other.list_objects_v2(Bucket="docs"),
        lambda: other.put_object(Bucket="docs", Key="x", Body=b"theirs"),
        lambda: other.delete_bucket(Bucket="docs"),
        lambda: other.delete_objects(Bucket="docs", Delete={"Objects": [{"Key": "x"}]}),
        lambda: other.list_multipart_uploads(Bucket="docs"),
        lambda: other.list_parts(Bucket="docs", Key="large", UploadId=upload["UploadId"]),
    ):
        with pytest.raises(ClientError) as caught:
            call()
        assert error_of(caught) == ("NoSuchBucket", 404)
    other.create_bucket(Bucket="docs")
    with pytest.raises(ClientError) as caught:
        other.get_object(Bucket="docs", Key="x")
    assert error_of(caught) == ("NoSuchKey", 404)
    with pytest.raises(ClientError) as caught:
        other.copy_object(Bucket="docs", Key="y", CopySource="docs/x")
    assert error_of(caught) == ("NoSuchKey", 404)
    other.put_object(Bucket="docs", Key="x", Body=b"theirs")
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"mine"
    assert server.files(private=False) == ["default/docs/x", "other/docs/x"]


def test_where_no_key_is_needed_none_is_asked_for(tmp_path: Path) -> None:
    with serving_face(tmp_path, keys_required=False) as server:
        with server.http(None) as client:
            assert client.put("/docs").status_code == 200
        server.boto("whatever").put_object(Bucket="docs", Key="x", Body=b"x")
        assert server.files() == ["default/docs/x"]
