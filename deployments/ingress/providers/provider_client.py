"""One provider's connections: a request out, its answer in, within limits of time and size.

httpcore without a client around it: no cookies, no redirects, no proxies or credentials from the
environment. A request is sent again only where the provider has not begun to work on it: it could
not be connected to, or it said itself that it is busy and for how short a time.
"""

import asyncio
import base64
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import certifi
import httpcore

from cluster.errors import BadRequestError, ServiceUnavailableError, ServingError
from cluster.integration_secrets import BasicValue, BearerValue, SecretValue
from cluster.provider_config import ProviderConfig
from deployments.ingress.providers.circuit_breaker import CircuitBreaker
from deployments.ingress.providers.provider_errors import (
    API_KEY_REF,
    ProviderAnswerError,
    ProviderDownError,
    ProviderTimeoutError,
    ProviderWords,
)

MAX_ANSWER_BYTES = 64 * 2**20
MAX_RETRY_WAIT_S = 2.0
FIRST_RETRY_WAIT_S = 0.1
IDLE_CONNECTION_S = 15.0
_MAX_ERROR_BYTES = 64 * 1024
_ERROR_TIMEOUT_S = 5.0
_POOL_TIMEOUT_S = 5.0
_DRAIN_S = 0.1

_COMMON_HEADERS = [
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),  # nothing to unpack: small bytes cannot become many
    (b"user-agent", b"shoal"),
]
_BUSY = (429, 503)
#: The request did not reach the provider.
_NOT_CONNECTED = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError)

Headers = list[tuple[bytes, bytes]]


class Incoming(NamedTuple):
    """An answer as it comes."""

    chunks: AsyncGenerator[bytes, None]
    note_begun: Callable[[], None]  # for the reader to call: it makes sense so far


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """That verifies certificates and names, against a file's authorities or the public ones.

    Raises:
        OSError: the file cannot be read, or has no certificates.
    """
    return ssl.create_default_context(cafile=ca_file or certifi.where())


class ProviderClient:
    """Belongs to the event loop that uses it first; `close` it."""

    def __init__(self, config: ProviderConfig, tls: ssl.SSLContext) -> None:
        self._config = config
        self._url = httpcore.URL(config.base_url + "/chat/completions")
        self._breaker = CircuitBreaker(config.name)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            proxy=None if config.proxy_url is None else _proxy(config.proxy_url),
            max_connections=config.max_connections,
            max_keepalive_connections=config.max_connections,
            keepalive_expiry=IDLE_CONNECTION_S,
        )

    async def close(self) -> None:
        await self._pool.aclose()

    @asynccontextmanager
    async def answer(
        self, body: bytes, secret: SecretValue | None, *, is_stream: bool
    ) -> AsyncIterator[Incoming]:
        """The answer to a chat request. Leaving the context by an error closes the
        connection; else it is used again, if the answer ends now.

        Raises, also while the bytes are read:
            ServingError: the provider refuses, fails, or cannot be asked.
        """
        words = ProviderWords(self._config.name, secret)
        headers = [*_COMMON_HEADERS, *self._headers(secret)]
        headers.append((b"accept", b"text/event-stream" if is_stream else b"application/json"))
        headers.append((b"content-length", str(len(body)).encode()))
        deadline_s = asyncio.get_running_loop().time() + self._config.answer_timeout_s
        with self._breaker.attempt() as note_success:
            response = await self._send(body, headers, words, deadline_s)
            try:
                self._check_form(response, is_stream=is_stream)
                async with aclosing(self._content(response, words, deadline_s)) as content:
                    yield Incoming(content, note_success)
                    await _drain(content)
            finally:
                await response.aclose()

    def _headers(self, secret: SecretValue | None) -> Headers:
        """Those of the configuration, and the one that has the key.

        Raises:
            BadRequestError: the secret is of another type than the provider needs.
        """
        config = self._config
        headers = [(name.encode(), value.encode()) for name, value in config.headers.items()]
        if config.auth == "none":
            return headers
        if config.auth == "basic":
            if not isinstance(secret, BasicValue):
                raise _wrong_type(config.name, "basic")
            pair = base64.b64encode(f"{secret.username}:{secret.password}".encode())
            return [*headers, (b"authorization", b"Basic " + pair)]
        if not isinstance(secret, BearerValue):
            raise _wrong_type(config.name, "bearer")
        token = secret.token
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise BadRequestError("The secret's token cannot be a header.", param=API_KEY_REF)
        if config.auth_header is not None:
            return [*headers, (config.auth_header.encode(), token.encode())]
        return [*headers, (b"authorization", b"Bearer " + token.encode())]

    async def _send(
        self, body: bytes, headers: Headers, words: ProviderWords, deadline_s: float
    ) -> httpcore.Response:
        """An answer whose status is 200; its body is still to be read."""
        for num_before in range(self._config.max_retries + 1):
            is_last = num_before == self._config.max_retries
            try:
                response = await self._send_once(body, headers, words, deadline_s)
            except _NotConnectedError:
                if is_last:
                    raise
                wait_s = FIRST_RETRY_WAIT_S * 2**num_before * random.uniform(0.5, 1.0)
            else:
                if response.status == 200:
                    return response
                problem = words.refusal(
                    response.status, response.headers, await _beginning(response)
                )
                wait_s = problem.retry_after_s if response.status in _BUSY else None
                if is_last or wait_s is None or wait_s > MAX_RETRY_WAIT_S:
                    raise problem
            await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    async def _send_once(
        self, body: bytes, headers: Headers, words: ProviderWords, deadline_s: float
    ) -> httpcore.Response:
        config = self._config
        timeouts = {
            "connect": config.connect_timeout_s,
            "read": config.read_timeout_s,
            "write": config.read_timeout_s,
            "pool": _POOL_TIMEOUT_S,
        }
        request = httpcore.Request(
            "POST",
            self._url,
            headers=[(b"host", _host(self._url)), *headers],
            content=body,
            extensions={"timeout": timeouts},
        )
        with _errors_translated(words):
            async with asyncio.timeout_at(deadline_s):
                return await self._pool.handle_async_request(request)

    def _check_form(self, response: httpcore.Response, *, is_stream: bool) -> None:
        """
        Raises:
            ProviderAnswerError: it cannot be what was asked for.
        """
        headers = {name.lower(): value for name, value in response.headers}
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        wanted = b"text/event-stream" if is_stream else b"application/json"
        if media_type != wanted:
            raise ProviderAnswerError(
                f"{self._config.name} answers with something else than {wanted.decode()}."
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ProviderAnswerError(f"{self._config.name} sends a packed answer unasked.")

    async def _content(
        self, response: httpcore.Response, words: ProviderWords, deadline_s: float
    ) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        num_bytes = 0
        with _errors_translated(words):
            async for chunk in response.aiter_stream():
                num_bytes += len(chunk)
                if num_bytes > MAX_ANSWER_BYTES:
                    raise ProviderAnswerError(
                        f"{self._config.name} sends more than {MAX_ANSWER_BYTES} bytes."
                    )
                if loop.time() > deadline_s:
                    raise _timeout(words)
                yield chunk


class _NotConnectedError(ProviderDownError):
    """The request did not reach the provider: it may be sent again."""


@contextmanager
def _errors_translated(words: ProviderWords) -> Iterator[None]:
    """From httpcore's errors, whose texts stay here, to ours."""
    try:
        yield
    except httpcore.PoolTimeout:
        raise ServiceUnavailableError(
            f"All connections to {words.name} are in use.", retry_after_s=1.0
        ) from None
    except _NOT_CONNECTED:
        raise _NotConnectedError(f"{words.name} cannot be reached.") from None
    except (httpcore.TimeoutException, TimeoutError):
        raise _timeout(words) from None
    except httpcore.NetworkError:
        raise ProviderDownError(f"{words.name} broke the connection off.") from None
    except httpcore.ProtocolError:
        raise ProviderDownError(f"{words.name} ended its answer before its end.") from None


def _timeout(words: ProviderWords) -> ProviderTimeoutError:
    return ProviderTimeoutError(f"{words.name} does not answer in time.")


async def _drain(content: AsyncGenerator[bytes, None]) -> None:
    """Read what follows a complete answer, for a moment: mostly it is the end of the body."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in content:
                pass
    except (TimeoutError, ServingError):
        pass  # the connection will not be used again


async def _beginning(response: httpcore.Response) -> bytes:
    """Of a refusal's body: enough to quote; b"" when it does not come. Closes the response."""
    body = b""
    try:
        async with asyncio.timeout(_ERROR_TIMEOUT_S):
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) >= _MAX_ERROR_BYTES:
                    break
    except (TimeoutError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        pass  # the status says enough
    finally:
        await response.aclose()
    return body[:_MAX_ERROR_BYTES]


def _proxy(url: str) -> httpcore.Proxy:
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username), unquote(parts.password or ""))
    return httpcore.Proxy(f"{parts.scheme}://{host}{port}", auth=auth)


def _wrong_type(provider_name: str, wanted: str) -> BadRequestError:
    return BadRequestError(
        f"{provider_name} needs an integration secret of type {wanted!r}.", param=API_KEY_REF
    )


def _host(url: httpcore.URL) -> bytes:
    host = b"[%b]" % url.host if b":" in url.host else url.host
    if url.port is None or url.port == {b"http": 80, b"https": 443}[url.scheme]:
        return host
    return b"%b:%d" % (host, url.port)
