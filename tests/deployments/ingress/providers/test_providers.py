"""Which provider a model belongs to, and that a provider is who it says it is."""

import asyncio
import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.config import RedisConfig
from cluster.integration_secrets import BearerValue
from cluster.provider_config import DEFAULT_PROVIDERS, ProviderConfig
from cluster.redis_client import connect
from deployments.ingress.providers.provider_client import ProviderClient, tls_context
from deployments.ingress.providers.provider_errors import ProviderDownError
from deployments.ingress.providers.providers import Providers
from tests.deployments.ingress.door_server import serving_doors
from tests.deployments.ingress.providers.fake_provider import FakeProvider


def config(name: str, **more: Any) -> ProviderConfig:
    return ProviderConfig.model_validate({"name": name, "base_url": "https://x.example", **more})


def test_the_longest_prefix_wins_and_served_models_are_nobodys() -> None:
    models = ["a/known", "a/served"]
    providers = Providers(
        [config("a", models=models), config("ab", prefix="a/b/")], is_served="a/served".__eq__
    )
    found = {name: providers.find(name) for name in ("a/x", "a/b/x", "a/served", "c/x", None)}
    names = {name: model and model.config.name for name, model in found.items()}
    assert names == {"a/x": "a", "a/b/x": "ab", "a/served": None, "c/x": None, None: None}
    (card,) = providers.cards
    assert (card.id, card.owned_by) == ("a/known", "a")


def test_a_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    with pytest.raises(ValueError, match="ca_file"):
        Providers([config("a", ca_file=missing)], is_served=lambda name: False)
    with pytest.raises(ValueError, match=r"none\.pem"):
        Providers([config("a", retrieval_template=missing)], is_served=lambda name: False)


async def test_builtin_providers_ask_for_a_secret_before_they_ask_anybody(
    checkpoint: Path, tmp_path: Path, redis_config: RedisConfig
) -> None:
    async with (
        connect(redis_config) as redis,
        serving_doors(checkpoint, tmp_path, redis, DEFAULT_PROVIDERS) as doors,
    ):
        for model in ("openai/gpt-4o", "xai/grok-4", "Groq/kimi-k2-instruct", "anthropic/claude"):
            answer = await doors.chat(model=model, api_key_ref="no-such-secret")
            assert answer.status_code == 400
            assert answer.json()["errors"][0]["source"] == {"pointer": "/api_key_ref"}


async def test_a_proxy_of_the_configuration_is_used(provider: FakeProvider) -> None:
    far = config(
        "far",
        base_url="http://far.example/v1",
        allow_plain_http=True,
        proxy_url=f"http://me:p%40ss@127.0.0.1:{provider.port}",
    )
    client = ProviderClient(far, tls_context(None))
    secret = BearerValue("sk-1")
    async with client.answer(b'{"model": "big"}', secret, is_stream=False) as incoming:
        assert b"choices" in b"".join([chunk async for chunk in incoming.chunks])
    await client.close()
    (request,) = provider.requests
    assert request.line == "POST http://far.example/v1/chat/completions HTTP/1.1"
    assert request.headers["proxy-authorization"] == "Basic bWU6cEBzcw=="


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Of an authority that is its own server: key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_path, cert_path = folder / f"{name}.key", folder / f"{name}.pem"
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key_path, cert_path


@pytest.mark.parametrize(
    ("server_name", "is_trusted"), [("localhost", True), ("localhost", False), ("other", True)]
)
async def test_a_provider_must_prove_its_name_before_it_hears_a_key(
    tmp_path: Path, server_name: str, is_trusted: bool
) -> None:
    key_path, cert_path = certificate(tmp_path, server_name)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert_path, key_path)
    provider = FakeProvider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    ca_file = str(cert_path) if is_trusted else None
    far = config("far", base_url=f"https://localhost:{port}/v1", ca_file=ca_file, max_retries=0)
    client = ProviderClient(far, tls_context(ca_file))

    async def ask() -> bytes:
        secret = BearerValue("sk-planted")
        async with client.answer(b'{"model": "big"}', secret, is_stream=False) as incoming:
            return b"".join([chunk async for chunk in incoming.chunks])

    try:
        if server_name == "localhost" and is_trusted:
            assert b"choices" in await ask()
        else:
            with pytest.raises(ProviderDownError):
                await ask()
            assert provider.requests == []
    finally:
        await client.close()
        server.close()
