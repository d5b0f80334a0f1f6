"""What looks like a secret is masked in every line before it is written.

The second line of defence: code that logs is not given secrets in the first place.
"""

import re

MASK = "***"

# The groups around the secret stay, so that a line still says what it was about.
_SECRETS = re.compile(
    r"""
      (?P<own>\bshoal-(?:[a-z0-9]{16}-)?)[A-Za-z0-9_-]{43,}            # our keys; an id stays
    | (?P<bearer>\bbearer[ ]+|x-api-key["']?[ ]*[:=,][ ]*b?["']?)[A-Za-z0-9._~+/=-]{12,}
    | (?P<provider>\b(?:sk|xai|gsk|pplx|hf|ghp)[-_])[A-Za-z0-9_-]{16,}
    | (?P<url>\b[a-z][a-z0-9+.-]*://[^\s/:@"']*:)[^\s/@"']+(?=@)        # a password in a URL
    | (?P<signature>\bX-Amz-(?:Signature|Credential|Security-Token)=)[^&\s"']+
    | (?P<input>\binput_value=).+?(?=,[ ]input_type=)                   # pydantic shows the input
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text without API keys, bearer tokens, passwords in URLs, signatures of links, and the
    inputs that pydantic's errors quote."""
    return _SECRETS.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    kept = match[match.lastgroup] if match.lastgroup else ""
    return kept + MASK
