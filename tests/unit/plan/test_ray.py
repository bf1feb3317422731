"""What Ray is to start, and what is said where it does not."""

from pathlib import Path

import pytest

from configs import problems, valid
from newtune.cli.train import Asked, start_on_ray
from newtune.config.idle import idle_keys
from newtune.distributed.world import World
from newtune.errors import ConfigError, SetupError
from newtune.plan.attention import is_installed
from newtune.plan.mesh import require_processes
from newtune.plan.processes import RayWorkers, ray_workers

ONE = World(0, 1, "cpu", 0, bf16_is_fast=False)
TWO = World(1, 2, "cpu", 0, bf16_is_fast=False)
RESOURCES = {"CPU": 2, "GPU": 0.5}


def test_what_ray_is_to_start() -> None:
    given = {"ray_num_workers": 2, "ray_run_name": "tried", "resources_per_worker": RESOURCES}
    assert ray_workers(valid(use_ray=True, **given)) == RayWorkers(2, RESOURCES, "tried")
    assert ray_workers(valid(use_ray=True)) == RayWorkers(1, {}, None)
    assert ray_workers(valid(**given)) is None
    assert set(idle_keys(valid(**given))) == set(given)
    assert idle_keys(valid(use_ray=True, **given)) == {}


def test_as_many_processes_train_as_ray_was_to_start() -> None:
    config = valid(use_ray=True, ray_num_workers=2)
    require_processes(config, TWO)
    with pytest.raises(ConfigError, match=r"is 2, but 1 process\(es\) were started, not by Ray"):
        require_processes(config, ONE)


def test_less_than_one_worker_is_refused() -> None:
    (said,) = problems(use_ray=True, ray_num_workers=0)
    assert said.startswith("ray_num_workers: ")


def test_options_of_the_other_launcher_are_refused() -> None:
    with pytest.raises(SetupError, match="--num-processes: with `use_ray` it is Ray"):
        start_on_ray(valid(use_ray=True), Asked(num_processes=2), [])


@pytest.mark.skipif(is_installed("ray"), reason="ray is installed")
def test_without_ray_its_extra_is_named() -> None:
    with pytest.raises(SetupError, match=r"pip install 'newtune\[ray\]'"):
        start_on_ray(valid(use_ray=True), Asked(), [])


def test_resources_that_are_not_there_are_named() -> None:
    launch = pytest.importorskip("newtune.distributed.ray_launch", exc_type=ImportError)
    there = {"CPU": 4.0, "GPU": 2.0, "memory": 1e9, "node:127.0.0.1": 1.0}
    assert launch.usual_resources(2, there) == {"CPU": 1, "GPU": 1}
    assert launch.usual_resources(4, there) == {"CPU": 1}
    launch.require_resources(launch.RayLaunch(2, {"CPU": 2}, None, Path()), there)
    for resources, said in {("CPU", 3): "6 CPU; this Ray has 4", ("TPU", 1): "has 0"}.items():
        plan = launch.RayLaunch(2, dict([resources]), None, Path())
        with pytest.raises(SetupError, match=said):
            launch.require_resources(plan, there)


def test_the_exit_code_that_says_most_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    launch = pytest.importorskip("newtune.distributed.ray_launch", exc_type=ImportError)
    lost, own = launch.Ended(0, "a", 75, "gone"), launch.Ended(1, "b", 2, "error: no such file")
    assert launch.exit_code([launch.Ended(0, "a", 0, "")]) == 0
    assert launch.exit_code([lost, own]) == 2
    assert capsys.readouterr().err.endswith("error: no such file\n")
    assert launch.exit_code([lost]) == 75
    assert launch.exit_code([launch.Ended(0, "a", -9, "")]) == 1
