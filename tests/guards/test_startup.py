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


def test_validate_takes_half_a_second_of_the_processor(tmp_path: Path) -> None:
    """Processor time, which other work on the machine does not change; the best of three."""
    import resource

    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    (tmp_path / "rows.jsonl").touch()

    def processor_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(3):
        before = processor_seconds()
        subprocess.run([sys.executable, "-c", PROGRAM, str(file)], check=True, capture_output=True)
        seconds.append(processor_seconds() - before)
    assert min(seconds) < 0.5
