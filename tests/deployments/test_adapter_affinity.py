"""Requests with an adapter go where it is loaded, until that costs more than to load it again."""

from types import SimpleNamespace
from typing import Any

from deployments.adapter_affinity import prefer_loaded


def connection(num_streams: int, *adapters: str, is_usable: bool = True) -> Any:
    return SimpleNamespace(
        num_streams=num_streams, is_usable=is_usable, has_adapter=lambda name: name in adapters
    )


def test_the_least_busy_replica_that_has_the_adapter_is_preferred() -> None:
    idle, busy, busier = connection(0), connection(3, "sql"), connection(5, "sql", "other")
    everyone = [idle, busier, busy]
    assert prefer_loaded("sql", idle, everyone) is busy
    assert prefer_loaded("other", idle, everyone) is busier


def test_without_a_replica_that_has_it_nothing_changes() -> None:
    idle, gone = connection(0), connection(0, "sql", is_usable=False)
    assert prefer_loaded("sql", idle, [idle, gone]) is idle


def test_a_hot_adapter_spreads_to_another_replica() -> None:
    idle, calm = connection(0), connection(10)
    assert prefer_loaded("sql", idle, [idle, connection(8, "sql")]) is not idle
    assert prefer_loaded("sql", idle, [idle, connection(9, "sql")]) is idle
    assert prefer_loaded("sql", calm, [calm, connection(28, "sql")]) is not calm
    assert prefer_loaded("sql", calm, [calm, connection(29, "sql")]) is calm
