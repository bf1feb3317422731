"""The program: commands, overrides, exit codes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from newtune import __version__
from newtune.cli import main as program
from newtune.cli.show_results import show_answer, show_text_lines
from newtune.cli.train import Asked, without_rank
from newtune.errors import DataError

RUNNER = CliRunner()
VALID = """\
base_model: some/model
datasets:
  - path: rows.jsonl
    type: alpaca
learning_rate: 1e-4
micro_batch_size: 2
gradient_accumulation_steps: 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(VALID)
    (tmp_path / "rows.jsonl").touch()
    return path


def run(*words: str | Path) -> Any:
    return RUNNER.invoke(program.app, [str(word) for word in words])


class Recorder:
    """Stands in for a command's module."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def run(self, *arguments: Any, **options: Any) -> int:
        self.calls.append((arguments, options))
        if self.error:
            raise self.error
        return 0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(program, "import_module", lambda _: recorder)
    return recorder


def test_unknown_options_override_the_config(recorder: Recorder) -> None:
    words = ["--learning_rate", "1e-4", "--datasets.0.path=x", "-deepspeed", "z.json", "--bf16"]
    result = run("train", "run.yaml", *words, "--resume")
    assert result.exit_code == 0
    assert recorder.calls == [((Path("run.yaml"), words), {"resume": True, "asked": Asked()})]


@pytest.mark.parametrize(
    "command",
    ["evaluate", "merge", "merge-lora", "chat", "generate", "inference", "preprocess", "data"],
)
def test_commands_get_file_and_overrides(command: str, recorder: Recorder) -> None:
    assert run(command, "run.yaml", "--seed", "1").exit_code == 0
    ((arguments, _),) = recorder.calls
    assert arguments == (Path("run.yaml"), ["--seed", "1"])


def test_an_error_of_the_users_has_no_traceback_and_exits_2(recorder: Recorder) -> None:
    recorder.error = DataError("rows.jsonl, row 3: no `output`")
    result = run("train", "run.yaml")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert "row 3: no `output`" in result.output


def test_text_of_a_row_in_an_error_does_nothing_to_the_terminal(recorder: Recorder) -> None:
    recorder.error = DataError("row 3: got \x1b[2J[bold]\u202e and half \ud83d")
    output = run("train", "run.yaml").output
    assert "got ␛[2J[bold]⟨U+202E⟩ and half ⟨U+D83D⟩" in output


def test_answers_do_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_answer(iter(["a\x1b", "[2J\n", "b"]))
    show_text_lines(["\x1b[2Jc"])
    assert capsys.readouterr().out == "a␛[2J\nb\n␛[2Jc\n"


@pytest.mark.parametrize("words", [["chat"], ["generate", "--prompt", "hi"]])
def test_a_folder_that_is_no_runs_and_no_models(words: list[str], tmp_path: Path) -> None:
    result = run(words[0], tmp_path, *words[1:])
    assert result.exit_code == 2
    assert "is no run's folder (it holds no `newtune.yaml`)" in result.output


def test_ctrl_c_exits_130(recorder: Recorder) -> None:
    recorder.error = KeyboardInterrupt()
    assert run("train", "run.yaml").exit_code == 130


def test_a_bug_keeps_its_traceback(recorder: Recorder) -> None:
    recorder.error = ZeroDivisionError("bug")
    assert isinstance(run("train", "run.yaml").exception, ZeroDivisionError)


def test_validate_says_what_is_valid(file: Path) -> None:
    result = run("validate", file)
    assert result.exit_code == 0
    assert result.stdout.startswith("valid")


def test_validate_prints_every_problem_of_every_file(file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(VALID + "lora_rr: 8\nseed: x\n")
    result = run("validate", wrong, file, tmp_path / "missing.yaml")
    assert result.exit_code == 2
    assert f"{wrong}:8: lora_rr" in result.output
    assert "Did you mean `lora_r`?" in result.output
    assert f"{wrong}:9: seed" in result.output
    assert "2 problems" in result.output
    assert "missing.yaml" in result.output
    assert f"valid {file}" in result.output


def test_validate_prints_notices(file: Path) -> None:
    file.write_text(VALID + "flash_attention: true\n")
    result = run("validate", file)
    assert "`flash_attention` is now `attn_implementation: flash_attention_2`" in result.output
    assert "(1 notice)" in result.output


def test_square_brackets_are_shown_as_they_are(file: Path) -> None:
    file.write_text(VALID + "lora_r: '[bold]'\n")
    assert "`[bold]`" in run("validate", file).output


def test_explain() -> None:
    result = run("explain", "lora_dropout")
    assert result.exit_code == 0
    assert "0.05" in result.output
    assert run("explain", "lora_dropuot").exit_code == 2


def test_schema_is_json() -> None:
    import json

    assert json.loads(run("schema").stdout)["additionalProperties"] is False


def test_version() -> None:
    assert run("version").stdout == f"{__version__}\n"


def test_help_names_every_command() -> None:
    output = run("--help").output
    names = (
        "train evaluate merge chat generate preprocess data plan validate explain schema version"
    )
    assert all(name in output for name in names.split())


def test_the_module_form_of_train() -> None:
    words = [sys.executable, "-m", "newtune.cli.train", "--help"]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "resume" in output


def test_the_rank_of_deepspeeds_launcher_is_no_configuration() -> None:
    words = ["--local_rank=1", "run.yaml", "-deepspeed", "zero3.json"]
    assert without_rank(words) == ["run.yaml", "-deepspeed", "zero3.json"]
