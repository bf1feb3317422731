"""The examples for clusters can be read, and their commands and options exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from newtune.cli.main import app

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
JOBS = sorted(FOLDER.glob("*.yaml"))
COMMAND = re.compile(r"newtune train ([^']+?)(?:'|$)", re.DOTALL)


def train_options(text: str) -> list[str]:
    [words] = COMMAND.findall(text.replace("\\\n", " "))
    return re.findall(r"--[\w-]+", words)


def assert_options_exist(options: list[str]) -> None:
    train = get_command(app).commands["train"]  # type: ignore[attr-defined]
    known = {option for parameter in train.params for option in parameter.opts}
    assert {"--nodes", "--node-rank", "--rendezvous", "--resume"} <= set(options) <= known


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_and_asks_for_what_exists(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = re.sub(r"^#.*$", "", script.read_text(), flags=re.MULTILINE)
    assert_options_exist(train_options(text))


@pytest.mark.parametrize("file", JOBS, ids=lambda path: path.name)
def test_a_job_has_one_launcher_per_machine(file: Path) -> None:
    job = yaml.safe_load(file.read_text())
    replicas = job["spec"]["pytorchReplicaSpecs"]
    machines = sum(each["replicas"] for each in replicas.values())
    for each in replicas.values():
        [container] = each["template"]["spec"]["containers"]
        [line] = container["args"]
        assert container["command"] == ["bash", "-c"]
        subprocess.run(["bash", "-n", "-c", line], check=True)
        assert_options_exist(train_options(line))
        assert f"--nodes {machines} " in line
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        assert f"--num-processes {gpus} " in line


def test_there_are_examples() -> None:
    assert len(SCRIPTS) == len(JOBS) == 1
