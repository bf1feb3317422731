"""`newtune preprocess CONFIG`: tokenise the data into the cache and show what was counted."""

from pathlib import Path

from newtune.cli.config_file import read_config
from newtune.cli.show_data import show_counts, show_totals


def run(config_path: Path, overrides: list[str], *, force: bool = False) -> int:
    """Prepare the data of a configuration; `force` does it anew though a cache is there."""
    config = read_config(config_path, overrides)
    if config.is_streamed:
        from newtune.cli.show_stream import say_nothing_to_prepare

        return say_nothing_to_prepare(config)
    from newtune.data.prepare import prepare_data
    from newtune.model.tokenizer import load_tokenizer

    data = prepare_data(config, load_tokenizer(config.tokenizer, config.model), force=force)
    show_counts(data.counts)
    show_totals(data)
    return 0
