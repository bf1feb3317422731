"""`newtune preprocess CONFIG`: tokenise the data into the cache and show what was counted."""

from pathlib import Path

from rich.console import Console

from newtune.cli.config_file import read_config
from newtune.cli.show_data import show_counts, show_totals


def run(config_path: Path, overrides: list[str], *, force: bool = False) -> int:
    """Prepare the data of a configuration; `force` does it anew though a cache is there.

    Of a streamed run that is the held-out data.
    """
    config = read_config(config_path, overrides)
    if config.is_streamed:
        Console(highlight=False).print("The training data is streamed: it needs no preparation.")
        if not config.data.test_datasets:
            return 0
    from newtune.data.prepare import prepare_data, prepare_held_out
    from newtune.model.tokenizer import load_tokenizer

    prepare = prepare_held_out if config.is_streamed else prepare_data
    data = prepare(config, load_tokenizer(config.tokenizer, config.model), force=force)
    show_counts(data.counts)
    show_totals(data)
    if config.data.push_dataset_to_hub:
        from newtune.outputs.dataset_upload import upload_data
        from newtune.plan.output import plan_dataset_hub

        upload_data(plan_dataset_hub(config), data)
    return 0
