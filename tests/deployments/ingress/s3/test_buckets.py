from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.deployments.ingress.s3.face_server import KEY, FaceServer, error_of


def test_buckets_are_created_listed_and_deleted(server: FaceServer) -> None:
    s3 = server.boto()
    assert s3.list_buckets()["Buckets"] == []
    s3.create_bucket(Bucket="handbook")
    s3.create_bucket(
        Bucket="archive", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["archive", "handbook"]
    assert s3.head_bucket(Bucket="handbook")["BucketRegion"] == "us-east-1"
    assert s3.get_bucket_location(Bucket="handbook")["LocationConstraint"] is None
    assert "Status" not in s3.get_bucket_versioning(Bucket="handbook")
    s3.delete_bucket(Bucket="handbook")
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["archive"]


def test_a_bucket_that_is_there_cannot_be_created(s3: Any) -> None:
    with pytest.raises(ClientError) as caught:
        s3.create_bucket(Bucket="docs")
    assert error_of(caught) == ("BucketAlreadyOwnedByYou", 409)


def test_a_bucket_with_objects_is_not_deleted(s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="a/b", Body=b"x")
    with pytest.raises(ClientError) as caught:
        s3.delete_bucket(Bucket="docs")
    assert error_of(caught) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket="docs", Key="a/b")
    s3.delete_bucket(Bucket="docs")


def test_names_that_no_bucket_can_have_are_refused(server: FaceServer) -> None:
    with server.http() as client:
        for name in ("/docs/x", "ab", "Capital", "10.0.0.1", "a..b", ".shoal", "%2e%2e"):
            response = client.put(f"/{name}")
            assert response.status_code == 400, name
            assert "<Code>InvalidBucketName</Code>" in response.text, name


def test_what_is_asked_of_a_missing_bucket_is_answered_by_name(server: FaceServer) -> None:
    s3 = server.boto()
    calls = [
        lambda: s3.list_objects_v2(Bucket="missing"),
        lambda: s3.put_object(Bucket="missing", Key="x", Body=b""),
        lambda: s3.get_object(Bucket="missing", Key="x"),
        lambda: s3.delete_object(Bucket="missing", Key="x"),
        lambda: s3.delete_bucket(Bucket="missing"),
        lambda: s3.get_bucket_location(Bucket="missing"),
        lambda: s3.create_multipart_upload(Bucket="missing", Key="x"),
        lambda: s3.list_multipart_uploads(Bucket="missing"),
        lambda: s3.delete_objects(Bucket="missing", Delete={"Objects": [{"Key": "x"}]}),
    ]
    for call in calls:
        with pytest.raises(ClientError) as caught:
            call()
        assert error_of(caught) == ("NoSuchBucket", 404)
    with pytest.raises(ClientError) as caught:
        s3.head_bucket(Bucket="missing")
    assert error_of(caught) == ("404", 404)


def test_many_objects_are_deleted_at_once(s3: Any, server: FaceServer) -> None:
    for number in range(3):
        s3.put_object(Bucket="docs", Key=f"n/{number}", Body=b"x")
    keys = ["n/0", "n/2", "never-there", "a/../b", "ünï & <code>"]
    answer = s3.delete_objects(
        Bucket="docs", Delete={"Objects": [{"Key": key} for key in keys], "Quiet": False}
    )
    deleted = {item["Key"] for item in answer["Deleted"]}
    assert deleted == {"n/0", "n/2", "never-there", "ünï & <code>"}
    assert [(item["Key"], item["Code"]) for item in answer["Errors"]] == [
        ("a/../b", "InvalidArgument")
    ]
    assert server.files() == ["default/docs/n/1"]
    quiet = s3.delete_objects(Bucket="docs", Delete={"Objects": [{"Key": "n/1"}], "Quiet": True})
    assert "Deleted" not in quiet


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<Delete>",
        b"<Other/>",
        b"<Delete/>",
        b"\xff",
        b'<!DOCTYPE d [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>'
        b"<Delete><Object><Key>&b;</Key></Object></Delete>",
        b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><Delete/>',
    ],
)
def test_xml_that_is_not_what_is_expected_is_refused(
    server: FaceServer, s3: Any, document: bytes
) -> None:
    with server.http() as client:
        response = client.post("/docs?delete", content=document)
    assert response.status_code == 400
    assert "<Code>MalformedXML</Code>" in response.text
    assert "root:" not in response.text


def test_a_document_of_more_than_a_megabyte_is_refused(server: FaceServer, s3: Any) -> None:
    with server.http() as client:
        response = client.post("/docs?delete", content=b" " * (2**20 + 1))
    assert response.status_code == 400
    assert "<Code>EntityTooLarge</Code>" in response.text


def test_what_is_not_implemented_says_so_by_name(server: FaceServer, s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"x")
    calls = [
        lambda: s3.get_bucket_acl(Bucket="docs"),
        lambda: s3.put_bucket_policy(Bucket="docs", Policy="{}"),
        lambda: s3.put_bucket_versioning(
            Bucket="docs", VersioningConfiguration={"Status": "Enabled"}
        ),
        lambda: s3.list_object_versions(Bucket="docs"),
        lambda: s3.get_object_tagging(Bucket="docs", Key="x"),
        lambda: s3.get_object(Bucket="docs", Key="x", VersionId="1"),
        lambda: s3.put_object(Bucket="docs", Key="x", Body=b"", ACL="public-read"),
        lambda: s3.put_object(Bucket="docs", Key="x", Body=b"", StorageClass="GLACIER"),
        lambda: s3.put_object(Bucket="docs", Key="x", Body=b"", ServerSideEncryption="AES256"),
        lambda: s3.put_object(Bucket="docs", Key="x", Body=b"", Tagging="a=b"),
    ]
    for call in calls:
        with pytest.raises(ClientError) as caught:
            call()
        assert error_of(caught) == ("NotImplemented", 501)
    with server.http() as client:
        assert "?acl" in client.get("/docs?acl").text
        assert client.post("/docs").status_code == 405
        assert client.patch("/docs/x").status_code == 405
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"x"


def test_the_error_document_has_what_clients_read(server: FaceServer, s3: Any) -> None:
    with server.http() as client:
        response = client.get("/docs/no%20<such>")
    assert response.headers["content-type"] == "application/xml"
    assert response.headers["x-amz-request-id"] in response.text
    assert "<Resource>/docs/no%20%3Csuch%3E</Resource>" in response.text
    assert KEY not in response.text


def test_each_change_is_told(server: FaceServer, s3: Any) -> None:
    s3.put_object(Bucket="docs", Key="x", Body=b"x")
    s3.delete_object(Bucket="docs", Key="x")
    s3.delete_objects(Bucket="docs", Delete={"Objects": [{"Key": "y"}]})
    assert [(ref.tenant, ref.name) for ref in server.changes] == [("default", "docs")] * 3


def test_a_put_succeeds_though_who_is_told_of_it_fails(server: FaceServer, s3: Any) -> None:
    server.change_error = RuntimeError("Redis is away")
    s3.put_object(Bucket="docs", Key="x", Body=b"x")
    assert s3.get_object(Bucket="docs", Key="x")["Body"].read() == b"x"
