from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.deployments.ingress.s3.face_server import FaceServer, error_of

TREE = ["a.txt", "b/1", "b/2", "b/c/3", "b-", "b0", "é/4", "z z/5+"]


def write(server: FaceServer, *keys: str) -> None:
    """Objects, written by hand: faster than thousands of puts."""
    for key in keys:
        path = server.root / "default" / "docs" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def keys_of(answer: Any) -> list[str]:
    return [item["Key"] for item in answer.get("Contents", [])]


def prefixes_of(answer: Any) -> list[str]:
    return [item["Prefix"] for item in answer.get("CommonPrefixes", [])]


def test_keys_are_in_the_order_of_their_bytes(server: FaceServer, s3: Any) -> None:
    write(server, *TREE)
    for answer in (s3.list_objects_v2(Bucket="docs"), s3.list_objects(Bucket="docs")):
        assert keys_of(answer) == sorted(TREE, key=str.encode)
        assert not answer["IsTruncated"]
        assert answer["Contents"][0]["Size"] == 1


def test_a_delimiter_groups_what_is_behind_it(server: FaceServer, s3: Any) -> None:
    write(server, *TREE)
    top = s3.list_objects_v2(Bucket="docs", Delimiter="/")
    assert keys_of(top) == ["a.txt", "b-", "b0"]
    assert prefixes_of(top) == ["b/", "z z/", "é/"]
    assert top["KeyCount"] == 6
    below = s3.list_objects(Bucket="docs", Prefix="b/", Delimiter="/")
    assert (keys_of(below), prefixes_of(below)) == (["b/1", "b/2"], ["b/c/"])
    other = s3.list_objects_v2(Bucket="docs", Delimiter="c/")
    assert prefixes_of(other) == ["b/c/"]
    assert keys_of(s3.list_objects_v2(Bucket="docs", Prefix="b")) == [
        "b-",
        "b/1",
        "b/2",
        "b/c/3",
        "b0",
    ]


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("delimiter", ["", "/"])
def test_pages_together_are_the_whole_listing(
    server: FaceServer, s3: Any, page_size: int, operation: str, delimiter: str
) -> None:
    write(server, *TREE)
    arguments = {"Bucket": "docs", "Delimiter": delimiter} if delimiter else {"Bucket": "docs"}
    whole = getattr(s3, operation)(**arguments)
    pages = s3.get_paginator(operation).paginate(
        **arguments, PaginationConfig={"PageSize": page_size}
    )
    found = list(pages)
    assert [key for page in found for key in keys_of(page)] == keys_of(whole)
    assert [prefix for page in found for prefix in prefixes_of(page)] == prefixes_of(whole)
    assert all(len(keys_of(page)) + len(prefixes_of(page)) <= page_size for page in found)


def test_thousands_of_keys_come_in_pages_of_a_thousand(server: FaceServer, s3: Any) -> None:
    names = [f"{number % 3}/{number:05}" for number in range(3500)]
    write(server, *names)
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket="docs"))
    assert [len(keys_of(page)) for page in pages] == [1000, 1000, 1000, 500]
    assert [key for page in pages for key in keys_of(page)] == sorted(names)
    assert s3.list_objects_v2(Bucket="docs", MaxKeys=2000)["MaxKeys"] == 1000
    assert keys_of(s3.list_objects_v2(Bucket="docs", StartAfter="2/03490")) == [
        "2/03491",
        "2/03494",
        "2/03497",
    ]


def test_an_empty_page_is_allowed(server: FaceServer, s3: Any) -> None:
    write(server, "x")
    empty = s3.list_objects_v2(Bucket="docs", MaxKeys=0)
    assert (empty["KeyCount"], empty["IsTruncated"]) == (0, False)


def test_prefixes_that_no_key_can_have_match_nothing(server: FaceServer, s3: Any) -> None:
    write(server, "a/b")
    for prefix in ("../", "..", "/", "a//", "a/../a/", "\0", "a/b/c", "." * 2000):
        assert s3.list_objects_v2(Bucket="docs", Prefix=prefix)["KeyCount"] == 0


def test_wrong_listing_parameters_are_refused(server: FaceServer, s3: Any) -> None:
    with server.http() as client:
        for query in (
            "list-type=1",
            "max-keys=many",
            "max-keys=-1",
            "encoding-type=rot13",
            "list-type=2&continuation-token=***",
        ):
            response = client.get(f"/docs?{query}")
            assert (response.status_code, "InvalidArgument" in response.text) == (400, True), query
        assert client.get("/docs?prefix=%ff").status_code == 400


def test_keys_are_readable_xml_without_an_encoding(server: FaceServer, s3: Any) -> None:
    write(server, "a&b<c>", "ü")
    with server.http() as client:
        text = client.get("/docs?delimiter=%00%26").text
    assert "<Key>a&amp;b&lt;c&gt;</Key>" in text
    assert "<Key>ü</Key>" in text


def test_names_that_are_no_keys_are_left_out(server: FaceServer, s3: Any) -> None:
    write(server, "fine")
    bucket = bytes(server.root / "default" / "docs")
    for name in (b"latin-\xfc", b"new\nline"):
        with open(bucket + b"/" + name, "wb"):
            pass
    (server.root / "default" / "docs" / "empty folder").mkdir()
    assert keys_of(s3.list_objects_v2(Bucket="docs")) == ["fine"]
    assert prefixes_of(s3.list_objects_v2(Bucket="docs", Delimiter="/")) == []


def test_a_missing_bucket_has_no_listing(server: FaceServer) -> None:
    with pytest.raises(ClientError) as caught:
        server.boto().list_objects(Bucket="missing")
    assert error_of(caught) == ("NoSuchBucket", 404)
