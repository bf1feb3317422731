"""What lies where in a run's folder, who may use it, and which checkpoint to go on from.

output_dir/
  newtune.yaml        the resolved configuration
  plan.json           every derived number with its reason
  environment.json    versions, platform, device
  inputs.json         digests of base and data, compared when the run is taken up again
  data.json           rows read, dropped, truncated, tokens
  metrics.jsonl       one line per logged step and evaluation
  summary.json        the result in numbers
  checkpoint-N/       after step N; complete when it holds manifest.json
  adapter_model.safetensors, adapter_config.json   or   model*.safetensors, config.json
  tokenizer files, README.md (model card)
  merged/             the merged model and verification.json
  .lock               held while a run writes here
"""

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from newtune.errors import ConfigError, Problem, SetupError
from newtune.logs import notice

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
MANIFEST = "manifest.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FULL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Either of them marks a whole model's folder."""
MAY_DIFFER_ON_RESUME = frozenset(
    {
        "output_dir",
        "resume_from_checkpoint",
        "auto_resume_from_checkpoints",
        "logging_steps",
        "dataset_num_proc",
        "dataset_prepared_path",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "save_total_limit",
        "batch_size",
        "micro_batch_size",
        "gradient_accumulation_steps",
        "ddp",
        "ddp_backend",
        "ddp_timeout",
        "hang_timeout_seconds",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_find_unused_parameters",
        "fsdp_version",
        "fsdp_config",
        "dp_replicate_size",
        "dp_shard_size",
        "tensor_parallel_size",
        "context_parallel_size",
        "use_ray",
        "ray_run_name",
        "ray_num_workers",
        "resources_per_worker",
        "hub_model_id",
        "hub_strategy",
        "hub_private_repo",
        "hub_revision",
        "hub_always_push",
        "push_dataset_to_hub",
    }
)
"""Keys that change neither the numbers nor the data of a run; a resumed run may set them anew.

Batch sizes are among them: that a step keeps its rows is checked with the plan's numbers
(`training.checkpoint.require_same_rows`), for they depend on the number of processes, too.
"""

LOCK = ".lock"
CLAIM_SECONDS = 15.0
"""The system frees the lock of a run that was killed once its last process has ended."""

REPORTED_PACKAGES = (
    "newtune",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
)


@dataclass(frozen=True)
class RunDir:
    """The folder of one run; methods name its files, and say what state it is in."""

    root: Path

    @property
    def config_file(self) -> Path:
        """Return the resolved configuration's path."""
        return self.root / "newtune.yaml"

    @property
    def plan_file(self) -> Path:
        """Return the plan's path."""
        return self.root / "plan.json"

    @property
    def environment_file(self) -> Path:
        """Return the path of the versions and the device."""
        return self.root / "environment.json"

    @property
    def data_file(self) -> Path:
        """Return the path of the data counts."""
        return self.root / "data.json"

    @property
    def metrics_file(self) -> Path:
        """Return the metrics' path, JSON lines."""
        return self.root / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        """Return the path of the result in numbers."""
        return self.root / "summary.json"

    @property
    def merged(self) -> Path:
        """Return the folder of the merged model."""
        return self.root / "merged"

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first; half-written ones are not listed."""
        if not self.root.is_dir():
            return []
        steps = {
            int(match[1]): path
            for path in self.root.iterdir()
            if (match := CHECKPOINT.fullmatch(path.name)) and (path / MANIFEST).is_file()
        }
        return [steps[step] for step in sorted(steps)]

    def results(self) -> list[str]:
        """Return the names of what an earlier run left here; empty means free to use."""
        names = [path.name for path in self.checkpoints()]
        finals = (ADAPTER_WEIGHTS, *FULL_WEIGHTS, "merged")
        names += [name for name in finals if (self.root / name).exists()]
        if self.metrics_file.is_file() and self.metrics_file.stat().st_size:
            names.append(self.metrics_file.name)
        return names

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs out of the folder while the block runs.

        Raises:
            SetupError: another run is writing there.
        """
        is_new = not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / LOCK, timeout=CLAIM_SECONDS)
        try:
            lock.acquire()
        except Timeout as error:
            raise SetupError(
                f"another run is writing to output_dir {self.root} at this moment. Choose another "
                "output_dir, or wait for its end."
            ) from error
        except NotImplementedError:
            notice(f"{self.root} is on a file system without locks: nothing keeps a second run out")
        try:
            yield
        finally:
            lock.release()
            if is_new and {path.name for path in self.root.iterdir()} <= {LOCK}:
                (self.root / LOCK).unlink(missing_ok=True)
                self.root.rmdir()

    def checkpoint_to_resume(self, asked: str | None, *, automatic: bool) -> Path | None:
        """Return the checkpoint to go on from, or None for a run from the start.

        `asked` is `resume_from_checkpoint`; `automatic` (`--resume`) takes the latest complete
        checkpoint here, and starts anew where there is none.

        Raises:
            ConfigError: the checkpoint asked for is missing or incomplete.
            SetupError: the folder holds another run's results and no resuming was asked for.
        """
        if asked:
            return _existing_checkpoint(Path(asked))
        if automatic:
            return self._latest_or_none()
        if found := self.results():
            raise SetupError(
                f"output_dir {self.root} already holds results of a run ({', '.join(found[:4])}). "
                "Go on from its last checkpoint with `--resume`, or choose another output_dir."
            )
        return None

    def _latest_or_none(self) -> Path | None:
        complete = self.checkpoints()
        if complete:
            return complete[-1]
        finals = [name for name in self.results() if name != self.metrics_file.name]
        if finals:
            raise SetupError(
                f"{self.root} holds a finished run ({', '.join(finals)}) but no checkpoint to "
                "resume from. Choose another output_dir."
            )
        notice(f"{self.root} holds no complete checkpoint: the run starts from the beginning")
        return None

    def require_same_config(self, now: Mapping[str, Any]) -> None:
        """Compare with the configuration that the run began with.

        Raises:
            ConfigError: keys that change the run differ; each is listed with both values.
        """
        if not self.config_file.is_file():
            return
        before = read_yaml(self.config_file)
        keys = sorted((before.keys() | now.keys()) - MAY_DIFFER_ON_RESUME)
        differing = [key for key in keys if before.get(key) != now.get(key)]
        if differing:
            raise ConfigError(
                [
                    Problem(
                        key,
                        f"is {now.get(key)!r} now, but the run to resume has {before.get(key)!r}.",
                        "Give the same value, or start a new run in another output_dir.",
                    )
                    for key in differing
                ]
            )


def _existing_checkpoint(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    siblings = [found.name for found in RunDir(path.parent).checkpoints()]
    known = f"Complete ones there: {', '.join(siblings)}." if siblings else "There is none beside."
    state = "is not a complete checkpoint" if path.is_dir() else "does not exist"
    raise ConfigError([Problem("resume_from_checkpoint", f"`{path}` {state}.", known)])


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines file; a last line that a crash cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_text(path: Path, text: str) -> None:
    """Write `text`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a configuration as YAML 1.2, whole or not at all."""
    import io

    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(value), stream)
    write_text(path, stream.getvalue())


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that `write_yaml` wrote."""
    from ruamel.yaml import YAML

    value: dict[str, Any] = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    return value


def read_environment(device: str) -> dict[str, Any]:
    """Return versions, platform and device of this process, for environment.json."""
    versions = {}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "versions": versions,
    }
