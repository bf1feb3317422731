"""What every test shares. Tiny models and tokenizers: `from tiny import tiny_model`."""

import pytest
import torch

# The tests are tiny and run side by side: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)
