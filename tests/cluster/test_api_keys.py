"""Keys are kept as digests; the first one is made once and readable by its owner alone."""

import hashlib
import stat
from pathlib import Path

import pytest

from cluster.api_keys import ApiKeys, KeySource, hash_key, load_or_create_key, new_key
from cluster.config import ApiKeyConfig, AuthConfig, ConfigError


@pytest.fixture(autouse=True)
def _no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_API_KEY", raising=False)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_keys_are_recognisable_and_never_the_same() -> None:
    assert new_key().startswith("shoal-")
    assert len({new_key() for _ in range(100)}) == 100


def test_a_key_is_found_by_its_text_and_nothing_else() -> None:
    keys = ApiKeys(
        [
            ApiKeyConfig(name="a", sha256=hash_key("key-a")),
            ApiKeyConfig(name="b", sha256=hash_key("key-b")),
        ]
    )
    assert tuple(keys.find(key).name for key in ("key-a", "key-b")) == ("a", "b")
    for wrong in ("", "key", "key-a ", "KEY-A", hash_key("key-a"), "\ud800", "é"):
        assert keys.find(wrong) is None


def test_stored_form_is_sha256() -> None:
    assert hash_key("ü") == hashlib.sha256("ü".encode()).hexdigest()


def test_configured_keys_and_extra_ones_open_the_server() -> None:
    auth = AuthConfig(api_keys=(ApiKeyConfig(name="a", sha256=hash_key("a")),))
    keys = ApiKeys.from_config(auth, [ApiKeyConfig(name="first", sha256=hash_key("f"))])
    assert (keys.find("a").name, keys.find("f").name, keys.required) == ("a", "first", True)


def test_a_server_that_nobody_could_call_is_refused() -> None:
    with pytest.raises(ConfigError, match="no API key"):
        ApiKeys([])
    assert not ApiKeys([], required=False).required


def test_the_first_key_is_created_once_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    created = load_or_create_key(home)
    assert created.source is KeySource.CREATED
    assert created.path == home / "api_key"
    assert (mode_of(home / "api_key"), mode_of(home)) == (0o600, 0o700)
    again = load_or_create_key(home)
    assert (again.text, again.source) == (created.text, KeySource.FILE)
    assert not again.narrowed_permissions
    assert ApiKeys([again.stored]).find(created.text) == again.stored


def test_a_key_file_that_others_can_read_is_narrowed_and_reported(tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text("my-key\n")
    (tmp_path / "api_key").chmod(0o644)
    key = load_or_create_key(tmp_path)
    assert (key.text, key.narrowed_permissions) == ("my-key", True)
    assert mode_of(tmp_path / "api_key") == 0o600


def test_the_environment_comes_first_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_API_KEY", "from-outside")
    key = load_or_create_key(tmp_path)
    assert (key.text, key.source, key.path) == ("from-outside", KeySource.ENVIRONMENT, None)
    assert not (tmp_path / "api_key").exists()


@pytest.mark.parametrize("text", ["two words", "line\nbreak", "kéy"])
def test_a_key_that_no_header_can_carry_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SHOAL_API_KEY", text)
    with pytest.raises(ConfigError, match="SHOAL_API_KEY"):
        load_or_create_key(tmp_path)


def test_an_empty_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text("")
    with pytest.raises(ConfigError, match="api_key: is empty"):
        load_or_create_key(tmp_path)
