"""Event loops of these tests: the channel on both kinds, everything else on asyncio's."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

# Fixtures of the ingress' tests that others use too.
from tests.deployments.ingress.conftest import checkpoint

__all__ = ["checkpoint"]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    # Replicas run on uvloop, whose transports differ in detail.
    if item.path.name.startswith("test_channel_"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
