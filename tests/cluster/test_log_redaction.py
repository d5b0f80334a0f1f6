import pytest
from pydantic import BaseModel, ValidationError

from cluster.api_keys import new_key
from cluster.log_redaction import redact
from cluster.tenants.records import NewKey


def test_our_keys_are_masked_and_a_stored_ones_id_stays() -> None:
    first = new_key()
    stored = NewKey.make("t", "n", scopes=(), expires_at=None)
    assert redact(f"key {first}, sent") == "key shoal-***, sent"
    assert redact(f'{{"k":"{stored.text}"}}') == f'{{"k":"shoal-{stored.record.key_id}-***"}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdefghijklmnop.q", "Authorization: Bearer ***"),
        ("(b'x-api-key', b'abcdefghijklmnop')", "(b'x-api-key', b'***')"),
        ("sk-proj-abcdefghijklmnopqrstuv failed", "sk-***"),
        ("redis://user:pa5$w0rd@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:pa5w0rd@host", "redis://:***@host"),
        ("GET /a?X-Amz-Signature=0af3&x=1", "GET /a?X-Amz-Signature=***&x=1"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, expected: str) -> None:
    assert redact(text).startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/v1/models",
        "shoal-redis-12 at /tmp/shoal-x7ab/redis.sock",
        "Send `Authorization: Bearer KEY`.",
        "user@example.com: 12",
        '{"request_id":"req_0123456789abcdef0123456789abcdef","answer_id":"chatcmpl-0123456789abcd"}',
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_inputs_that_pydantic_quotes_are_masked() -> None:
    class Body(BaseModel):
        content: int

    with pytest.raises(ValidationError) as refused:
        Body.model_validate({"content": "a prompt, and more"})
    assert "a prompt" in str(refused.value)
    assert "a prompt" not in redact(str(refused.value))
