"""The program `newtune`: its commands, how errors end it, and which words override the config."""

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from newtune import __version__
from newtune.errors import FailedElsewhere, Interrupted, NewtuneError

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

ConfigOrFolder = Annotated[
    Path, typer.Argument(help="The YAML file or the folder of a run.", show_default=False)
]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", "--max_new_tokens", help="Most tokens of an answer."),
]
SystemMessage = Annotated[
    str | None,
    typer.Option(help='System message to begin with; the training\'s own by default, "" for none.'),
]
WhichModel = Annotated[
    Literal["merged", "adapter", "model", "base"] | None,
    typer.Option(help="Which model; empty takes the best that the run left."),
]


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def train(
    context: typer.Context,
    config: Config,
    *,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in `output_dir`.")
    ] = False,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--num-processes",
            "--num_processes",
            min=1,
            help="Processes on this machine; by default one per GPU.",
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines that train together.")] = None,
    node_rank: Annotated[
        int | None,
        typer.Option("--node-rank", "--node_rank", min=0, help="0 on the machine they meet at."),
    ] = None,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet.")
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            "--max-restarts",
            "--max_restarts",
            min=0,
            help="How often a failed run starts again from its last checkpoint.",
        ),
    ] = None,
) -> None:
    """Train, and save the adapter or model with everything that was decided."""
    from newtune.cli.train import Asked

    asked = Asked(num_processes, nodes, node_rank, rendezvous, max_restarts)
    call("train", config, context.args, resume=resume, asked=asked)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def evaluate(context: typer.Context, config: Config, which: WhichModel = None) -> None:
    """Evaluate the trained model on the held-out data."""
    call("evaluate", config, context.args, which=which)


@app.command("merge-lora", hidden=True, context_settings=TAKES_OVERRIDES)
@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def merge(
    context: typer.Context,
    config: Config,
    *,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Empty: the base's own.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier merged model.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep a merged model that fails its proof.")
    ] = False,
    quantize: Annotated[
        Literal["nf4", "fp4", "int8"] | None,
        typer.Option(help="Write the merged model once more, quantised by bitsandbytes."),
    ] = None,
) -> None:
    """Merge the adapter into the base model and verify the result."""
    options = {"dtype": dtype, "overwrite": overwrite, "keep": keep, "quantize": quantize}
    call("merge", config, context.args, **options)


@app.command("merge-sharded-fsdp-weights", context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def merge_sharded(
    context: typer.Context,
    run: ConfigOrFolder,
    *,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Empty: `consolidated` in the run's.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier weights there.")
    ] = False,
) -> None:
    """Put a checkpoint in parts (SHARDED_STATE_DICT) together as ordinary safetensors."""
    call("merge_sharded", run, context.args, to=to, overwrite=overwrite)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def export(
    context: typer.Context,
    run: ConfigOrFolder,
    *,
    form: Annotated[str, typer.Option("--format", help="gguf.")] = "gguf",
    dtype: Annotated[
        str | None, typer.Option(help="f32, f16, bf16 or q8_0. Empty: that of the weights.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Empty: beside the model's folder.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier file.")
    ] = False,
) -> None:
    """Write the merged or whole model as one file for other programs (GGUF)."""
    call("export", run, context.args, form=form, dtype=dtype, to=to, overwrite=overwrite)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def upload(
    context: typer.Context,
    run: ConfigOrFolder,
    *,
    merged: Annotated[
        bool, typer.Option("--merged", help="The merged model, with the proof of the merge.")
    ] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter (what a run leaves, if it has one).")
    ] = False,
    to: Annotated[str | None, typer.Option(help="OWNER/NAME; empty: `hub_model_id`.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if it is not there. Empty: `hub_revision`.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes; upload nothing.")
    ] = False,
) -> None:
    """Upload the trained adapter or model, or the merged model, to a hub, with its card."""
    if merged and adapter:
        raise typer.BadParameter("give only one of --merged and --adapter")
    call(
        "upload",
        run,
        context.args,
        merged=merged,
        adapter=adapter,
        to=to,
        private=private,
        revision=revision,
        dry_run=dry_run,
    )


@app.command("inference", hidden=True, context_settings=TAKES_OVERRIDES)
@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def chat(
    context: typer.Context,
    config: ConfigOrFolder,
    which: WhichModel = None,
    system: SystemMessage = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--max_new_tokens", help="Most tokens of an answer.")
    ] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
) -> None:
    """Talk with the trained model in the terminal, or answer the lines of a pipe."""
    call(
        "chat",
        config,
        context.args,
        which=which,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def generate(
    context: typer.Context,
    config: ConfigOrFolder,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    input_path: Annotated[
        Path | None, typer.Option("--input", help="JSON lines with `prompt` or `messages`.")
    ] = None,
    output_path: Annotated[
        Path | None, typer.Option("--output", help="JSON lines to write, `answer` added.")
    ] = None,
    which: WhichModel = None,
    system: SystemMessage = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--max_new_tokens", help="Most tokens of an answer.")
    ] = 256,
) -> None:
    """Answer prompts with the trained model."""
    call(
        "generate",
        config,
        context.args,
        prompts=tuple(prompt or ()),
        input_path=input_path,
        output_path=output_path,
        which=which,
        system=system,
        max_new_tokens=max_new_tokens,
    )


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def preprocess(
    context: typer.Context,
    config: Config,
    *,
    force: Annotated[bool, typer.Option("--force", help="Prepare anew, cache or not.")] = False,
) -> None:
    """Tokenise the data into the cache and show what was counted."""
    call("preprocess", config, context.args, force=force)


@app.command(context_settings=TAKES_OVERRIDES, epilog=OVERRIDES)
def data(
    context: typer.Context,
    config: Config,
    *,
    rows: Annotated[int, typer.Option(min=1, help="How many packs (or examples) to show.")] = 3,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Show this micro-batch of the run instead.")
    ] = None,
    evaluation: Annotated[
        bool, typer.Option("--eval", help="The held-out data instead of the training data.")
    ] = False,
    row: Annotated[
        int | None, typer.Option(help="Show this row of the source, whatever became of it.")
    ] = None,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="List the rows that were left out, and why.")
    ] = False,
    dataset: Annotated[
        int | None, typer.Option(min=1, help="Which dataset `--row` and `--dropped` mean.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Longest list that is printed; 0 prints all.")
    ] = 200,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with micro-batches to FILE.")
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="How many micro-batches the page has.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is trained: tokens, masks and packs, as the trainer gets them."""
    once = {"--row": row is not None, "--dropped": dropped, "--html": html is not None}
    given = [name for name, wanted in once.items() if wanted]
    if len(given) > 1:
        raise typer.BadParameter(f"give only one of {' and '.join(given)}")
    call(
        "data",
        config,
        context.args,
        rows=rows,
        batch=batch,
        evaluation=evaluation,
        row=row,
        dropped=dropped,
        dataset=dataset,
        limit=limit or None,
        html=html,
        batches=batches,
        as_json=as_json,
    )


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
    # libraries' progress bars of seconds stay silent; downloads from a hub show theirs in any case
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from newtune.cli.show import show_log

        show_log()
        code = import_module(f"newtune.cli.{command}").run(*arguments, **options)
    except NewtuneError as error:
        from newtune.cli.show import show_error

        if speaks(error):
            show_error(error)
        code = INTERRUPTED if isinstance(error, Interrupted) else USER_ERROR
    except KeyboardInterrupt:
        from newtune.cli.show import show_interrupted

        show_interrupted()
        code = INTERRUPTED
    raise typer.Exit(code)


def speaks(error: NewtuneError) -> bool:
    """Tell whether this process prints an error: of several with the same one, the first does."""
    if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    if isinstance(error, FailedElsewhere):
        return False
    from newtune.distributed.meeting import first_to_say

    return first_to_say(str(error))


def main() -> None:
    """Run the program."""
    app()
