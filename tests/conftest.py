"""What every test shares. Tiny models and tokenizers: `from tiny import tiny_model`."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)
