"""Who asks: the API key in a request to the S3 face, which is S3's access key id.

As at Telnyx, whose clients this face is for, the access key id is the API key itself, and the
signature, its secret, date and region are not looked at. Checking the signature would protect
nothing: whoever can read a request reads the key, and the secret would be that same key. It would
lock out clients whose secret is blank or random, which Telnyx documents as fine. (Keys are stored
as digests, so a secret of its own could not be checked either.) What a signed request says about
its body, `x-amz-content-sha256`, is checked: see `payload`.

A presigned URL would carry the key in the clear, in logs and histories, so they are refused.
"""

import re

from cluster.tenant_config import KeyScope
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.records import ApiKey
from deployments.ingress.s3.errors import S3Error
from deployments.ingress.s3.request import S3Request

_CREDENTIAL = re.compile(r"Credential=(.+)/\d{8}/[^/,\s]*/[^/,\s]*/aws4_request")
_PRESIGNED = {"x-amz-signature", "x-amz-credential", "x-amz-algorithm", "awsaccesskeyid"}


async def authenticate(request: S3Request, keys: KeyDirectory) -> ApiKey:
    """Whose request it is.

    Raises:
        S3Error: no key, a wrong one, one that is not for buckets, or one in the URL.
        ServiceUnavailableError: it cannot be looked up now.
    """
    if any(name.lower() in _PRESIGNED for name in request.query):
        raise S3Error(
            "AccessDenied",
            "Presigned URLs carry the access key id, which is the API key here: they are refused. "
            "Send the request with an Authorization header.",
        )
    if not keys.required:
        return keys.nobody()
    key = await keys.find(_presented_key(request.headers.get("authorization", "")))
    if key is None:
        raise S3Error("InvalidAccessKeyId", "The access key id is not one of the API keys.")
    if KeyScope.BUCKETS not in key.scopes:
        raise S3Error("AccessDenied", "This needs a key with the scope 'buckets'.")
    return key


def _presented_key(authorization: str) -> str:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return rest.strip()
    credential = _CREDENTIAL.search(rest)
    if scheme.startswith("AWS4-") and credential is not None:
        return credential[1]
    raise S3Error(
        "AccessDenied",
        "No API key was given; sign with it as the access key id (AWS Signature Version 4), or "
        "send `Authorization: Bearer KEY`.",
    )
