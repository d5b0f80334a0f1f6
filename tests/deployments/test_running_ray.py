"""Which Ray cluster `shoal deploy` means, and what it refuses before it asks Ray."""

from pathlib import Path

import pytest

from deployments.local_ray import SERVE_ENVIRONMENT, LaunchError
from deployments.running_ray import (
    check_is_of_this_host,
    driver_environment,
    find_ray,
    redis_password,
)


def test_the_ray_of_this_host_is_the_one_that_ray_has_noted(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert find_ray("auto", {"RAY_TMPDIR": str(tmp_path)}) == "10.0.0.1:6379"
    given = {"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": "10.0.0.2:6379"}
    assert find_ray("auto", given) == "10.0.0.2:6379"
    assert find_ray("10.0.0.3:6379", given) == "10.0.0.3:6379"


def test_where_no_ray_runs_the_message_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no Ray runs on this host .*`ray start --head`"):
        find_ray("auto", {"RAY_TMPDIR": str(tmp_path)})


@pytest.mark.parametrize("address", ["10.0.0.1", ":6379", "ray://10.0.0.1", "10.0.0.1:port"])
def test_an_address_that_is_none_is_refused_by_name(address: str) -> None:
    with pytest.raises(LaunchError, match="must be 'auto' or like"):
        find_ray(address, {})


def test_a_head_that_is_another_host_is_refused() -> None:
    check_is_of_this_host("127.0.0.1")
    with pytest.raises(LaunchError, match=r"192\.0\.2\.1, which is not this host"):
        check_is_of_this_host("192.0.2.1")


def test_the_password_of_redis_follows_from_the_cluster_secret() -> None:
    assert redis_password(b"a" * 32) == redis_password(b"a" * 32)
    assert redis_password(b"a" * 32) != redis_password(b"b" * 32)
    assert redis_password(b"a" * 32).isalnum()


def test_the_driver_has_the_token_and_not_what_is_for_replicas() -> None:
    shell = {**SERVE_ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": "auto"}
    assert driver_environment(shell, "10.0.0.1:6379") == {
        "RAY_AUTH_MODE": "token",
        "RAY_ADDRESS": "10.0.0.1:6379",
    }
