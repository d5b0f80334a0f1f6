import base64
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.secret_box import SecretBox, SecretSealedError
from cluster.secret_keys import (
    ENVIRONMENT,
    FILE_NAME,
    SecretKey,
    SecretKeys,
    SecretsKeyError,
    ensure_keys_file,
    replace_keys,
    rotation_lock,
)

CONTEXT = ("acme", "openai")


def box(*keys: SecretKey) -> SecretBox:
    return SecretBox(SecretKeys(keys or (SecretKey.new(),)))


def test_what_is_sealed_opens_again_and_is_not_there_in_clear() -> None:
    one = box()
    sealed = one.seal(b"sk-very-secret", context=CONTEXT)
    assert b"sk-very" not in sealed
    assert one.open(sealed, context=CONTEXT) == b"sk-very-secret"


def test_the_same_value_is_never_sealed_the_same_twice() -> None:
    one = box()
    assert len({one.seal(b"value", context=CONTEXT) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "other", [("acme", "xai"), ("other", "openai"), ("acmeo", "penai"), ("acme", "openai", "")]
)
def test_a_value_that_is_moved_to_another_place_does_not_open(other: tuple[str, ...]) -> None:
    one = box()
    with pytest.raises(SecretSealedError, match="not what was stored"):
        one.open(one.seal(b"value", context=CONTEXT), context=other)


def test_a_changed_byte_anywhere_is_noticed() -> None:
    one = box()
    sealed = one.seal(b"value", context=CONTEXT)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(SecretSealedError):
            one.open(bytes(changed), context=CONTEXT)
    for length in range(len(sealed)):
        with pytest.raises(SecretSealedError):
            one.open(sealed[:length], context=CONTEXT)


def test_all_keys_open_and_the_first_one_seals() -> None:
    old, new = SecretKey.new(), SecretKey.new()
    before, after = box(old), box(new, old)
    sealed = before.seal(b"value", context=CONTEXT)
    assert after.open(sealed, context=CONTEXT) == b"value"
    assert not after.is_current(sealed)
    with pytest.raises(SecretSealedError, match=new.key_id.hex()):
        before.open(after.seal(b"value", context=CONTEXT), context=CONTEXT)


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = SecretKey.new(), SecretKey.new()
    monkeypatch.setenv(ENVIRONMENT, f"{first.text()}, {second.text()},")
    assert SecretKeys.load(tmp_path).keys == (first, second)
    ensure_keys_file(tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize(
    "text", ["", ",", "short", base64.b64encode(b"16 bytes, no more").decode(), "a" * 44, "é"]
)
def test_a_broken_key_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT, text)
    with pytest.raises(SecretsKeyError) as refusal:
        SecretKeys.load(tmp_path)
    assert len(text) < 5 or text not in str(refusal.value)


def test_the_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ensure_keys_file(tmp_path), range(32)))
    path = tmp_path / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [FILE_NAME]
    first = path.read_text()
    ensure_keys_file(tmp_path)
    assert path.read_text() == first
    assert len(SecretKeys.load(tmp_path).keys) == 1


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    ensure_keys_file(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o640)
    with pytest.raises(SecretsKeyError, match="chmod 600"):
        SecretKeys.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecretsKeyError, match="secrets_keys"):
        SecretKeys.load(tmp_path)


def test_a_process_follows_the_file_when_another_one_changes_it(tmp_path: Path) -> None:
    ensure_keys_file(tmp_path)
    here, elsewhere = (SecretBox(SecretKeys.load(tmp_path)) for _ in range(2))
    with rotation_lock(elsewhere.keys):
        replace_keys(elsewhere.keys, [SecretKey.new(), *elsewhere.keys.keys])
    sealed = elsewhere.seal(b"value", context=CONTEXT)
    assert here.open(sealed, context=CONTEXT) == b"value"
    assert here.is_current(sealed)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_two_rotations_at_once_are_refused(tmp_path: Path) -> None:
    ensure_keys_file(tmp_path)
    keys = SecretKeys.load(tmp_path)
    with (
        rotation_lock(keys),
        pytest.raises(SecretsKeyError, match="just being rotated"),
        rotation_lock(keys),
    ):
        pass


def test_keys_do_not_show_themselves() -> None:
    key = SecretKey.new()
    shown = repr(SecretKeys((key,))) + repr(key) + str(key)
    assert key.text() not in shown
    assert repr(key.value) not in shown
