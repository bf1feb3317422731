"""What every test shares. Tiny models and tokenizers: `from tiny import tiny_model`."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import hub_server

hub_server.claim()  # before a test imports a library that reads where the hub is

# The tests are tiny and run side by side: more threads would only wait for each other.
torch.set_num_threads(1)

# The same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones, many more.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_finish() -> None:
    """Keep what the libraries brought out of the garbage collections that every run asks for."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """Serve an empty hub on this machine; the cache is empty and there is no token."""
    import datasets
    import huggingface_hub

    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    with hub_server.serve_hub() as served:
        yield served
