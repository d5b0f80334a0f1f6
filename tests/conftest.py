"""Fixtures of all tests; they live in modules of their own."""

import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# Without a GPU the kernels run in Triton's interpreter. Triton reads this once, when the first
# module of any test brings it in: here is the one place that comes before all of them.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest_plugins = ["tests.redis_server"]

# How long an example takes says more about the machine than about the code. The same examples in
# every run: what fails has been changed.
settings.register_profile(
    "shoal",
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
settings.load_profile("shoal")
# It draws from the constants of all local modules that are loaded: other ones when other tests run
# before. There is no setting against it.
providers._get_local_constants = providers.Constants


@pytest.fixture(autouse=True)
def _chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn without a seed is the same in every run, and after any other tests."""
    of_engines = random.Random(0)
    drawn = SimpleNamespace(randbits=of_engines.getrandbits)
    monkeypatch.setattr("models.engine.engine.secrets", drawn)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
