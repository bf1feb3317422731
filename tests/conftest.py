"""What every test shares. Tiny models and tokenizers: `from tiny import tiny_model`."""

import os

import pytest
import torch
from hypothesis import settings

# The tests are tiny and run side by side: more threads would only wait for each other.
torch.set_num_threads(1)

# The same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones, many more.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)
