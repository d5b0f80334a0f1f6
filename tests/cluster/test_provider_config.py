from typing import Any

import pydantic
import pytest

from cluster.provider_config import DEFAULT_PROVIDERS, ProviderConfig, check_providers

MINE = {"name": "mine", "base_url": "https://api.example.com/v1/"}


def config(**more: Any) -> ProviderConfig:
    return ProviderConfig.model_validate({**MINE, **more})


def test_an_entry_needs_a_name_and_an_address() -> None:
    mine = config()
    assert (mine.prefix, mine.base_url) == ("mine/", "https://api.example.com/v1")
    with pytest.raises(pydantic.ValidationError):
        ProviderConfig.model_validate({"name": "mine"})


def test_what_an_entry_says_replaces_what_is_known() -> None:
    here = ProviderConfig.model_validate({"name": "openai", "base_url": "https://eu.example.com"})
    assert here.base_url == "https://eu.example.com"
    assert here.token_limit_field == "max_completion_tokens"


def test_names_of_models_lose_the_prefix_or_keep_it() -> None:
    mine = config()
    assert mine.serves("mine/a/b")
    assert mine.serves("Mine/a")
    assert not mine.serves("mine/")
    assert not mine.serves("minea")
    assert mine.own_name("mine/a/b") == "a/b"
    assert config(keeps_prefix=True).own_name("mine/a") == "mine/a"


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://example.com"},
        {"base_url": "https://"},
        {"base_url": "https://user:password@example.com/v1"},
        {"base_url": "https://example.com/v1?key=1"},
        {"base_url": "https://example.com/v1#x"},
        {"base_url": "https://example.com:99999/v1"},
        {"base_url": "https://example.com/\r\nhost: x"},
        {"base_url": "http://example.com/v1"},
        {"prefix": "mine"},
        {"prefix": "/"},
        {"prefix": "a b/"},
        {"name": "Mine!"},
        {"headers": {"host": "x"}},
        {"headers": ["x"]},
        {"headers": {"x": 17}},
        {"proxy_url": "proxy:3128"},
        {"headers": {"x": "a\r\nb: c"}},
        {"headers": {"a b": "c"}},
        {"headers": {"authorization": "Bearer x"}},
        {"auth": "header"},
        {"auth_header": "x-api-key"},
        {"auth": "header", "auth_header": "a: b"},
        {"auth": "header", "auth_header": "Host"},
        {"parameters": ["temprature"]},
        {"more_parameters": ["messages"]},
        {"models": ["other/a"]},
        {"unknown": 1},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        config(**wrong)


@pytest.mark.parametrize(
    "more",
    [
        {"base_url": "http://127.0.0.1:8000/v1"},
        {"base_url": "http://localhost/v1"},
        {"base_url": "http://example.com/v1", "allow_plain_http": True},
        {"base_url": "http://vllm.internal/v1", "auth": "none"},
    ],
)
def test_secrets_go_in_clear_only_to_this_machine_or_where_it_is_said(more: dict[str, Any]) -> None:
    assert config(**more).base_url.startswith("http://")


def test_names_and_prefixes_are_used_once() -> None:
    check_providers(DEFAULT_PROVIDERS)
    with pytest.raises(ValueError, match="name 'mine'"):
        check_providers([config(), config(prefix="other/")])
    with pytest.raises(ValueError, match="prefix 'mine/'"):
        check_providers([config(), config(name="other", prefix="Mine/")])


def test_a_proxys_password_is_not_shown() -> None:
    url = "http://user:password@proxy:3128"
    assert "password" not in repr(config(proxy_url=url, headers={"x-key": "password"}))


@pytest.mark.parametrize(
    "wrong", [{"proxy_url": "socks5://user:planted@proxy"}, {"headers": {"x": "planted\n"}}]
)
def test_a_message_about_a_secret_does_not_show_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError) as raised:
        config(**wrong)
    assert all("planted" not in item["msg"] for item in raised.value.errors())
