"""Where results go, when checkpoints are written, and how a run is taken up again."""

from typing import Annotated, Any, Literal

from pydantic import Field

from newtune.config.section import NotNegative, Positive, Section


class OutputSection(Section):
    """Folder, checkpoints, resuming, publishing."""

    output_dir: str = "./model-out"
    """Folder of the run's results. One that holds another run's results is refused, unless the
    run is resumed."""
    save_steps: Positive | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Write a checkpoint every so many steps; below 1, a share of the run. Excludes
    `saves_per_epoch`. Empty: at the end of each epoch."""
    saves_per_epoch: Positive | None = None
    """Checkpoints per epoch, evenly spaced, the last at its end. Excludes `save_steps`."""
    save_strategy: Literal["no", "steps", "epoch", "best"] | None = None
    """`no`, `steps` (with `save_steps`), `epoch`, or `best` (when an evaluation is the best so
    far). Empty: read off `save_steps`."""
    save_total_limit: NotNegative | None = None
    """Checkpoints kept; older ones are deleted, the best never. Empty: all are kept."""
    save_first_step: bool | None = None
    """Write a checkpoint after the first step."""
    save_only_model: bool = False
    """Checkpoints hold weights only. They cannot be resumed."""
    save_safetensors: bool | None = None
    """Write safetensors files. newtune always does; false is refused."""
    merged_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the merged model. Empty: the base checkpoint's own."""
    resume_from_checkpoint: str | None = None
    """Checkpoint folder to go on from."""
    auto_resume_from_checkpoints: bool = False
    """Go on from the latest checkpoint in `output_dir`, if there is one. `--resume` on the command
    line sets it."""
    strict: bool = False
    """The command line may override only keys that the file has."""
    debug: bool | str | None = None
    """Show more of the data. `newtune data CONFIG` does, so this changes nothing."""
    hub_model_id: str | None = None
    """Hub id that the result is uploaded to: adapter or model, tokenizer, card. The repository is
    made, and the right to write to it checked, before weights load. The token is that of HF_TOKEN
    or `hf auth login`; no key holds it. A failed upload does not end the run; its exit code tells.
    """
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] | None = None
    """When to upload. `end`: the result. `every_save`: besides, the model with every checkpoint.
    `checkpoint`: besides, the latest checkpoint whole, in `last-checkpoint/`, to go on from.
    `all_checkpoints`: every checkpoint whole, in a folder of its own. Empty: at the end."""
    hub_private_repo: bool | None = None
    """Make the repository private when it is created. Prepared data (`push_dataset_to_hub`) is
    private unless this is false."""
    hub_revision: str | None = None
    """Branch that is uploaded to; made from the main one if it is not there."""
    hub_always_push: bool | None = None
    """Upload every checkpoint. Otherwise, of those written while an upload goes on only the newest
    is uploaded."""
    dynamic_checkpoint: dict[str, Any] | None = None
    """Write a checkpoint when a file appears or a signal arrives. newtune writes one on Ctrl-C and
    SIGTERM."""
    gradio_title: str | None = None
    """Title of a web page to chat with the model."""
    gradio_share: bool | None = None
    """Make that web page public."""
    gradio_server_name: str | None = None
    """Address of that web page."""
    gradio_server_port: Positive | None = None
    """Port of that web page."""
    gradio_max_new_tokens: Positive | None = None
    """Most tokens of an answer on that web page."""
    gradio_temperature: float | None = None
    """Temperature of that web page."""
