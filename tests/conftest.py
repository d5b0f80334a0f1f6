"""Fixtures of all tests; they live in modules of their own."""

pytest_plugins = ["tests.redis_server"]
