"""Tests that share a launch stay together: without it, every test process makes the launch anew."""

import os

import pytest


@pytest.mark.xdist_group("kept")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="needs several test processes")
def test_the_group_of_a_test_reaches_its_scheduler(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@kept")
