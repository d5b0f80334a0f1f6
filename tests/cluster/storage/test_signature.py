from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage.signature import Credentials, encode_query, signed_headers

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


def botos_authorization(
    method: str, query: list[tuple[str, str]], headers: dict[str, str], token: str | None
) -> str:
    """What botocore would have sent in place of the same headers."""
    url = "https://s3.example.com:9000/bucket" + (f"?{encode_query(query)}" if query else "")
    kept = {"host": headers["host"], "x-amz-content-sha256": headers["x-amz-content-sha256"]}
    request = AWSRequest(method=method, url=url, headers=kept)
    signer = S3SigV4Auth(BotoCredentials("id", "secret/+", token), "s3", "eu-west-3")
    request.context["timestamp"] = headers["x-amz-date"]
    request.context["payload_signing_enabled"] = True
    request.headers["X-Amz-Date"] = headers["x-amz-date"]
    if token:
        request.headers["X-Amz-Security-Token"] = token
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    signed = signer.signed_headers(signer.headers_to_sign(request))
    return (
        f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}, "
        f"SignedHeaders={signed}, Signature={signature}"
    )


@pytest.mark.parametrize("token", [None, "session-token"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@given(query=st.dictionaries(TEXT.filter(bool), TEXT, max_size=4))
def test_signatures_are_those_that_botocore_makes(
    method: str, token: str | None, query: dict[str, str]
) -> None:
    pairs = list(query.items())
    headers = signed_headers(
        method,
        "s3.example.com:9000",
        "/bucket",
        pairs,
        credentials=Credentials(
            access_key_id="id", secret_access_key="secret/+", session_token=token
        ),
        region="eu-west-3",
    )
    assert headers["authorization"] == botos_authorization(method, pairs, headers, token)
    moment = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
