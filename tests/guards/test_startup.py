"""`newtune validate` answers at once and imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "numpy")
CONFIG = """\
base_model: some/model
datasets:
  - path: rows.jsonl
    type: chat_template
val_set_size: 0.05
sample_packing: true
adapter: lora
lora_target_linear: true
flash_attention: true
learning_rate: 2e-4
micro_batch_size: 2
gradient_accumulation_steps: 1
special_tokens:
"""
PROGRAM = f"""
import sys
from newtune.cli.main import app
try:
    app(["validate", sys.argv[1]])
except SystemExit as end:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    sys.exit(f"imported {{heavy}}" if heavy else end.code)
"""


def test_validate_imports_nothing_heavy(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    (tmp_path / "rows.jsonl").touch()
    subprocess.run([sys.executable, "-c", PROGRAM, str(file)], check=True, capture_output=True)


def test_validate_costs_little_more_than_a_bare_interpreter_with_its_libraries(
    tmp_path: Path,
) -> None:
    """Processor time as a ratio, the best of three each: a slow machine slows both sides."""
    import resource

    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    (tmp_path / "rows.jsonl").touch()

    def processor_seconds(program: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", program, str(file)]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = "import pydantic, ruamel.yaml, typer, rich.console"
    pairs = [(processor_seconds(PROGRAM), processor_seconds(libraries)) for _ in range(3)]
    ours, bare = (min(column) for column in zip(*pairs, strict=True))
    assert ours < 4 * bare
