"""Where the results of a run go."""

from collections.abc import Mapping
from pathlib import Path

from newtune.config.run import RunConfig
from newtune.plan.ledger import Ledger
from newtune.plan.parts import HubPlan, OutputPlan

UPLOADS: Mapping[str, str] = {
    "end": "the result, once trained",
    "every_save": "the model with every checkpoint, and the result",
    "checkpoint": "as every_save, and the latest checkpoint whole, in last-checkpoint/",
    "all_checkpoints": "as every_save, and every checkpoint whole",
}
"""`hub_strategy` → what is uploaded."""


def plan_output(config: RunConfig, ledger: Ledger) -> OutputPlan:
    """Return where results go: folder, hub."""
    output = config.output
    folder = ledger.decide("output.folder", Path(output.output_dir), "output_dir")
    hub = None
    if output.hub_model_id:
        strategy = output.hub_strategy or "end"
        hub = HubPlan(
            output.hub_model_id,
            private=bool(output.hub_private_repo),
            revision=output.hub_revision,
            strategy=strategy,
            always_push=bool(output.hub_always_push),
        )
        ledger.decide("output.hub", hub, f"hub_strategy {strategy}: {UPLOADS[strategy]}")
    why = "push_dataset_to_hub; private unless `hub_private_repo: false`"
    return OutputPlan(
        folder=folder,
        merged_dtype=output.merged_dtype,
        hub=hub,
        dataset_hub=ledger.decide("output.dataset_hub", plan_dataset_hub(config), why),
    )


def plan_dataset_hub(config: RunConfig) -> HubPlan | None:
    """Return where prepared data is uploaded, if anywhere."""
    id = config.data.push_dataset_to_hub
    return HubPlan(id, private=config.output.hub_private_repo is not False) if id else None
