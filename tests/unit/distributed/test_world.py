"""The launcher's environment: read whole, or refused."""

import pytest

from newtune.distributed.world import World, launched
from newtune.errors import SetupError

WHOLE = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_a_launchers_environment() -> None:
    assert launched(WHOLE) == (3, 4, 1)
    assert launched({}) == (0, 1, 0)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "WORLD_SIZE"])
def test_half_an_environment_would_be_separate_runs(name: str) -> None:
    environment = {key: value for key, value in WHOLE.items() if key != name}
    with pytest.raises(SetupError, match=f"WORLD_SIZE is 4, but {name} is not set"):
        launched(environment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "RANK is 4, but WORLD_SIZE is 4"),
        ({"RANK": "one"}, "RANK is `one`, which is no number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ``"),
    ],
)
def test_numbers_that_cannot_be(change: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        launched({**WHOLE, **change})


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_an_engine_of_the_launchers_own_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match=f"ask for an engine \\({name}\\)"):
        launched({**WHOLE, name: "true"})
    assert launched({**WHOLE, name: "false"}) == (3, 4, 1)


def test_other_commands_run_as_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert World.current().rank == 3
    with pytest.raises(SetupError, match="only `newtune train` runs on several processes"):
        World.alone()
