"""Fixtures of all tests; they live in modules of their own."""

import os

import torch
from hypothesis import settings

# Without a GPU the kernels run in Triton's interpreter. Triton reads this once, when the first
# module of any test brings it in: here is the one place that comes before all of them.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest_plugins = ["tests.redis_server"]

# How long an example takes says more about the machine than about the code.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
