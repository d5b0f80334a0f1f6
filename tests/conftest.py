"""Fixtures of all tests; they live in modules of their own."""

from hypothesis import settings

pytest_plugins = ["tests.redis_server"]

# How long an example takes says more about the machine than about the code.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
