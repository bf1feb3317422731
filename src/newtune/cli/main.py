"""The program `newtune`: its commands, how errors end it, and which words override the config."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from newtune import __version__
from newtune.errors import NewtuneError

INTERRUPTED = 130
USER_ERROR = 2

app = typer.Typer(
    name="newtune",
    help="Fine-tune language models from one YAML file, with proof of what was done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
OVERRIDES = "Any key of the configuration may follow as `--key value`."

Config = Annotated[Path, typer.Argument(help="The YAML file of the run.", show_default=False)]


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def train(
    context: typer.Context,
    config: Config,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in `output_dir`.")
    ] = False,
) -> None:
    """Train, and save the adapter or model with everything that was decided."""
    call("train", config, context.args, resume=resume)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def evaluate(context: typer.Context, config: Config) -> None:
    """Evaluate the trained model on the held-out data."""
    call("evaluate", config, context.args)


@app.command("merge-lora", hidden=True, context_settings=TAKES_OVERRIDES)
@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def merge(context: typer.Context, config: Config) -> None:
    """Merge the adapter into the base model and verify the result."""
    call("merge", config, context.args)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def chat(context: typer.Context, config: Config) -> None:
    """Talk with the trained model in the terminal."""
    call("chat", config, context.args)


@app.command("inference", hidden=True, context_settings=TAKES_OVERRIDES)
@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def generate(context: typer.Context, config: Config) -> None:
    """Answer prompts with the trained model."""
    call("generate", config, context.args)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def preprocess(context: typer.Context, config: Config) -> None:
    """Tokenise the data into the cache and show what was counted."""
    call("preprocess", config, context.args)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def data(context: typer.Context, config: Config) -> None:
    """Show examples: their tokens, which of them are trained, where packs break."""
    call("data", config, context.args)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def plan(
    context: typer.Context,
    config: Config,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every derived number with its reason; no weights are loaded."""
    call("plan", config, context.args, as_json=as_json)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="YAML files.", show_default=False)],
) -> None:
    """Check configurations: every problem with file, line and key."""
    call("validate", files)


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A key, such as `lora_r` or `datasets.0.type`.")],
) -> None:
    """Say what a key takes, means and does."""
    call("explain", key)


@app.command()
def schema(
    *,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference page instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of a configuration, for editors."""
    call("schema", as_markdown=as_markdown)


@app.command()
def version() -> None:
    """Print the version."""
    from newtune.cli.show import show_text

    show_text(__version__)


def call(command: str, *arguments: Any, **options: Any) -> NoReturn:
    """Run `cli/<command>.py` and leave with its code; an error of the user's has no traceback."""
    try:
        code = import_module(f"newtune.cli.{command}").run(*arguments, **options)
    except NewtuneError as error:
        from newtune.cli.show import show_error

        show_error(error)
        code = USER_ERROR
    except KeyboardInterrupt:
        from newtune.cli.show import show_interrupted

        show_interrupted()
        code = INTERRUPTED
    raise typer.Exit(code)


def main() -> None:
    """Run the program."""
    app()
