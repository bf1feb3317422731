"""Experiment trackers; none is on by default, and nothing else is ever reported anywhere."""

from typing import Annotated, Any, Literal

from pydantic import Field

from newtune.config.section import Positive, Section, Strings


class TrackingSection(Section):
    """TensorBoard, Weights & Biases, MLflow, Comet, Trackio."""

    use_tensorboard: bool = False
    """Write TensorBoard files into the run's folder."""
    use_wandb: bool | None = None
    """Report to Weights & Biases. Empty: when `wandb_project` is given."""
    wandb_project: str | None = None
    """Project."""
    wandb_entity: str | None = None
    """User or team of the project."""
    wandb_name: str | None = None
    """Name of the run."""
    wandb_run_id: str | None = None
    """Id of the run, to go on reporting to it."""
    wandb_group: str | None = None
    """Group of the run."""
    wandb_tags: str | Strings | None = None
    """Tags of the run."""
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    """`online`, `offline` (written to disk, uploaded later) or `disabled`."""
    wandb_watch: Literal["gradients", "parameters", "all", "false"] | bool | None = None
    """Log histograms of the gradients, the parameters or both; true: the gradients'."""
    wandb_log_model: Literal["end", "checkpoint", "false"] | bool | None = None
    """Upload weights: every `checkpoint`, or the last one at the `end`; true: at the end."""
    use_mlflow: bool | None = None
    """Report to MLflow. Empty: when `mlflow_experiment_name` is given."""
    mlflow_tracking_uri: str | None = None
    """Address of the MLflow server. Empty: the environment's."""
    mlflow_experiment_name: str | None = None
    """Experiment."""
    mlflow_run_name: str | None = None
    """Name of the run."""
    hf_mlflow_log_artifacts: bool | None = None
    """Upload checkpoints too."""
    use_comet: bool | None = None
    """Report to Comet. Empty: when `comet_project_name` is given."""
    comet_api_key: Annotated[str | None, Field(exclude=True, repr=False)] = None
    """Key. Better kept in Comet's own settings: the resolved configuration is saved, without it."""
    comet_workspace: str | None = None
    """Workspace."""
    comet_project_name: str | None = None
    """Project."""
    comet_experiment_key: str | None = None
    """Id of the experiment, to go on reporting to it."""
    comet_mode: Literal["create", "get", "get_or_create"] | None = None
    """Make a new experiment, go on with one, or whichever fits."""
    comet_online: bool | None = None
    """False: write to disk instead of reporting."""
    comet_experiment_config: dict[str, Any] | None = None
    """Further options of the experiment."""
    use_trackio: bool | None = None
    """Report to Trackio. Empty: when `trackio_project_name` is given."""
    trackio_project_name: str | None = None
    """Project."""
    trackio_run_name: str | None = None
    """Name of the run."""
    trackio_space_id: str | None = None
    """Hub space that shows the metrics."""
    use_otel_metrics: bool | None = None
    """Serve metrics for Prometheus."""
    otel_metrics_host: str | None = None
    """Address of those metrics."""
    otel_metrics_port: Positive | None = None
    """Port of those metrics."""
