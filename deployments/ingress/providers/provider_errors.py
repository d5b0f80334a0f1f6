"""What a provider's failures and refusals become for our clients.

Its 401 is not ours: the client's key for this server is fine, the stored one is not. Words of a
provider are quoted in part, and never with a key in them.
"""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import orjson

from cluster.errors import (
    BadRequestError,
    NotFoundError,
    ServiceUnavailableError,
    ServingError,
    TooManyRequestsError,
)
from cluster.integration_secrets import BasicValue, SecretValue
from cluster.openai_schema.chat import ChatCompletionRequest

MAX_RETRY_AFTER_S = 3600.0
API_KEY_REF = "api_key_ref"
_MAX_QUOTED_CHARS = 500
_LIKE_A_KEY = re.compile(r"\b(?:sk|xai|gsk|pk|key)[-_][A-Za-z0-9_*.\u2026-]{4,}")
_REDACTED = "[removed]"
Headers = Sequence[tuple[bytes, bytes]]


class ProviderDownError(ServiceUnavailableError):
    """It cannot be reached, fails, or breaks off."""


class ProviderAnswerError(ServingError):
    """What it sends is no answer."""

    status, code, title = 502, "10007", "Bad gateway"
    openai_type = "server_error"


class ProviderTimeoutError(ServingError):
    status, code, title = 504, "10008", "Request timeout"
    openai_type = "server_error"


#: The provider's fault, and a reason to leave it in peace for a while.
FAULTS = (ProviderDownError, ProviderAnswerError, ProviderTimeoutError)


class ProviderWords:
    """Speaks of one request to one provider: knows what must not be said."""

    def __init__(self, provider_name: str, secret: SecretValue | None) -> None:
        self.name = provider_name
        self._unspeakable = _spellings(secret)

    def refusal(self, status: int, headers: Headers, body: bytes) -> ServingError:
        """An answer that is not 200. `body`: its beginning is enough."""
        retry_after_s = read_retry_after(headers)
        message, param = self._quoted(body)
        if status == 401:  # its words often show a part of the key
            return BadRequestError(
                f"{self.name} does not accept the key in this integration secret.",
                param=API_KEY_REF,
                openai_code="provider_authentication_failed",
            )
        if status in (402, 403):
            return BadRequestError(
                f"{self.name} does not allow this with the key in this integration secret{message}",
                param=API_KEY_REF,
                openai_code="provider_permission_denied",
            )
        if status == 404:
            return NotFoundError(
                f"{self.name} has no such model{message}",
                param="model",
                openai_code="model_not_found",
            )
        if status == 429:
            return TooManyRequestsError(
                f"{self.name} takes no more requests with this key now{message}",
                openai_code="provider_rate_limit",
                retry_after_s=retry_after_s,
            )
        if status in (408, 409, 425) or status >= 500:
            return ProviderDownError(
                f"{self.name} cannot answer now (its status is {status}){message}",
                retry_after_s=retry_after_s,
            )
        if status >= 400:
            return BadRequestError(
                f"{self.name} refuses the request{message}",
                param=param,
                openai_code="provider_refused",
            )
        return ProviderAnswerError(f"{self.name} answers with the status {status}.")

    def midway(self, error: object) -> ServingError:
        """An `error` in a stream, after its status was 200."""
        message, _ = self._quoted(orjson.dumps({"error": error}))
        return ProviderDownError(f"{self.name} failed midway{message}")

    def _quoted(self, body: bytes) -> tuple[str, str | None]:
        """`: message` or ".", and the field it is about, if we have such a field."""
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return ".", None
        error = value.get("error", value) if isinstance(value, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        if not isinstance(message, str) or not message.strip():
            return ".", None
        param = error.get("param") if isinstance(error, dict) else None
        is_ours = isinstance(param, str) and param.split(".")[0] in _FIELDS
        return f": {self._speakable(message)}", param if is_ours else None

    def _speakable(self, message: str) -> str:
        for word in self._unspeakable:
            message = message.replace(word, _REDACTED)
        message = _LIKE_A_KEY.sub(_REDACTED, message)
        message = "".join(char if char.isprintable() else " " for char in message)
        if len(message) > _MAX_QUOTED_CHARS:
            message = message[: _MAX_QUOTED_CHARS - 1] + "…"
        return message.strip()


_FIELDS = frozenset(ChatCompletionRequest.model_fields)


def read_retry_after(headers: Headers) -> float | None:
    """Seconds, from `Retry-After` (a number or a date) or `retry-after-ms`; None: neither."""
    given = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    text, unit_s = given.get(b"retry-after-ms"), 0.001
    if text is None:
        text, unit_s = given.get(b"retry-after"), 1.0
    if text is None:
        return None
    seconds = _number(text)
    if seconds is not None:
        seconds *= unit_s
    else:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,12})?", text) else None


def _spellings(secret: SecretValue | None) -> list[str]:
    """Longest first, so that none is left half removed."""
    if secret is None:
        return []
    if isinstance(secret, BasicValue):
        pair = f"{secret.username}:{secret.password}"
        words = [base64.b64encode(pair.encode()).decode(), pair, secret.password]
    else:
        words = [secret.token]
    return sorted(words, key=len, reverse=True)
