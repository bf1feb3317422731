"""Which rows are read, how they become conversations and labels, and where they are cached."""

from typing import Annotated, Any, Literal

from pydantic import Field

from newtune.config.section import (
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Strings,
)

EosChoice = Literal["turn", "all", "last", "none"]


class PromptSection(Section):
    """A prompt of one's own: which columns are read and how they are joined to a prompt."""

    system_prompt: str = ""
    """System text of rows that have none of their own."""
    system_format: str = "{system}"
    """How the system text is written; may use `{system}`."""
    field_system: str = "system"
    """Column of the row's own system text; where it is filled it replaces `system_prompt`."""
    field_instruction: str = "instruction"
    """Column of the instruction."""
    field_input: str = "input"
    """Column of the input; may be absent or empty."""
    field_output: str = "output"
    """Column of the answer, which is what is trained."""
    format: str | None = None
    """The prompt of a row with an input; may use `{instruction}` and `{input}`."""
    no_input_format: str | None = None
    """The prompt of a row without an input; may use `{instruction}`, but not `{input}`. Empty:
    `format` with an empty input."""
    field_prompt: str | None = None
    """Preference data: column of the prompt."""
    field_chosen: str | None = None
    """Preference data: column of the better answer."""
    field_rejected: str | None = None
    """Preference data: column of the worse answer."""
    field_completion: str | None = None
    """Preference data: column of the answer that `field_label` judges."""
    field_label: str | None = None
    """Preference data: column of the judgement."""
    prompt_format: str | None = None
    """Preference data: how the prompt is written."""
    chosen_format: str | None = None
    """Preference data: how the better answer is written."""
    rejected_format: str | None = None
    """Preference data: how the worse answer is written."""
    completion_format: str | None = None
    """Preference data: how the judged answer is written."""


class DatasetSection(Section):
    """One dataset: where its rows are and how they are read."""

    path: str = ""
    """Local file, folder or pattern (`data/*.jsonl`), hub id, or an address of a file or folder
    (`https://`, `s3://`, `gs://`, `az://`, `hf://`). Required."""
    weight: PositiveFloat | None = None
    """How much of this dataset an epoch holds, against the others. By itself: how often each of
    its examples stands in an epoch; 2 is twice, 0.5 another half in every epoch. With
    `dataset_mixing.by` `rows` or `tokens`: its share of the epoch, relative to the other weights.
    Streamed: its share of the tokens. Empty: 1."""
    type: str | PromptSection | None = None
    """Format of the rows: a name (`alpaca`, `chat_template`, `completion`, `input_output`, ...), a
    mapping (a prompt of one's own), or `package.module:function`. Empty: the rows are tokenised
    already (`input_ids`, `attention_mask`, `labels`)."""
    ds_type: Literal["json", "jsonl", "csv", "arrow", "parquet", "text"] | None = None
    """File format. Empty: read off the file name."""
    data_files: str | Strings | None = None
    """Files inside `path` to read: names, patterns or addresses. Empty: all data files."""
    name: str | None = None
    """Configuration (subset) of a hub dataset."""
    split: str | None = None
    """Split to read; a slice such as `train[:500]` works for local files too. Empty: `train`."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub dataset. There is none any more."""
    shards: Positive | None = None
    """Cut the dataset into so many pieces and use the one that `shards_idx` names."""
    shards_idx: NotNegative | None = None
    """Which piece to use, counted from 0. Needs `shards`."""
    preprocess_shards: Positive | None = None
    """Tokenise this dataset in so many pieces, each a file of the cache; the result is the same.
    A preparation that was interrupted goes on with the pieces that are missing. Empty: pieces of
    about 4,096 rows."""
    on_error: Literal["raise", "drop"] = "raise"
    """A malformed row (no JSON, a field missing, a value of the wrong type): `raise` stops and says
    where it stands, `drop` leaves it out, counted and listed. newtune's own key."""
    field: str | None = None
    """Column of a `completion` dataset. Empty: `text`."""
    chat_template: str | None = None
    """Template of a `chat_template` dataset: a name, `tokenizer_default`,
    `tokenizer_default_fallback_NAME`, or `jinja`. Empty: the top-level `chat_template`."""
    chat_template_jinja: str | None = None
    """The template itself, or a file that holds it."""
    field_messages: str | None = None
    """Column of the conversation. Empty: `messages`."""
    field_system: str | None = None
    """Column of a system text outside the conversation. Empty: `system`."""
    field_tools: str | None = None
    """Column of the tools offered to the model. Empty: `tools`."""
    field_thinking: str | None = None
    """Property of a message that holds its reasoning. Empty: `reasoning_content`."""
    template_thinking_key: str | None = None
    """Name under which the template expects the reasoning. Empty: `reasoning_content`."""
    message_property_mappings: dict[str, str] | None = None
    """Property that the template expects → property of the row's messages (`role: from`).
    Empty: `role: role, content: content`."""
    message_field_training: str | None = None
    """Property of a message that says whether it is trained; goes before everything else."""
    message_field_training_detail: str | None = None
    """Property of a message that lists character ranges of its content (`begin_offset`,
    `end_offset` inclusive, `train`); what no range names is not trained."""
    roles: dict[str, Strings] | None = None
    """Role → more names it has in the rows, besides user (human, user), assistant (gpt, assistant,
    model), system, tool. A role that is not known is an error."""
    roles_to_train: Strings | None = None
    """Roles whose turns are trained. Empty: assistant."""
    train_on_eos: EosChoice | None = None
    """Which end-of-sequence tokens are trained: those that end trained turns (`turn`, the
    default), `all`, the `last`, or `none`."""
    train_on_eot: EosChoice | None = None
    """The same for end-of-turn tokens. Empty: as `train_on_eos`."""
    eot_tokens: Strings | None = None
    """End-of-turn tokens of this dataset's template. Empty: the top-level `eot_tokens`."""
    drop_system_message: bool = False
    """Leave the rows' system messages out."""
    split_thinking: bool = False
    """Take reasoning between think tags out of the text and hand it to the template apart."""
    train_on_inputs: bool | None = None
    """Train the prompt too. Empty: the top-level `train_on_inputs`."""
    field_prompt: str | None = None
    """Preference data: column of the prompt."""
    field_chosen: str | None = None
    """Preference data: column of the better answer."""
    field_rejected: str | None = None
    """Preference data: column of the worse answer."""
    field_completion: str | None = None
    """Preference data: column of the judged answer."""
    field_label: str | None = None
    """Preference data: column of the judgement."""
    text_column: str | None = None
    """Raw text: its column; goes before `field`."""
    skip: NotNegative | None = None
    """Streamed data: rows to leave out at the start, in every pass."""
    input_format: str | None = None
    """Preference and step-wise data: how the prompt is written."""
    input_transform: str | None = None
    """Function that changes rows before they are read."""
    step_separator: str | None = None
    """Step-wise data: text between two steps."""
    max_completion_length: Positive | None = None
    """Step-wise data: longest answer in tokens."""
    train_on_last_step_only: bool | None = None
    """Step-wise data: train the last step only."""
    logprobs_field: str | None = None
    """Distillation: column of the teacher's log-probabilities."""
    temperature: float | None = None
    """Distillation: temperature of the teacher's log-probabilities."""


Datasets = Annotated[tuple[DatasetSection, ...], Field(strict=False)]


class MixingSection(Section):
    """How the datasets are mixed: what their weights mean, and when an epoch ends."""

    by: Literal["repeats", "rows", "tokens"] = "repeats"
    """What a `weight` counts. `repeats`: how often each example of the dataset stands in an epoch.
    `rows`, `tokens`: the dataset's share of the epoch's examples or tokens, relative to the other
    weights (70 and 30, or 0.7 and 0.3)."""
    exhaust: Literal["all", "first"] | None = None
    """When an epoch ends that is mixed by `rows` or `tokens`: when every dataset has been seen
    whole, the others being repeated (`all`, the default), or when the first has been seen whole
    (`first`; of the others, each epoch takes another part)."""
    temperature: PositiveFloat | None = None
    """In place of weights: a dataset's share is its size (in rows or tokens) to the power of
    1 / temperature. 1: by size; the higher, the more alike the shares."""


class DataSection(Section):
    """Training and held-out data, chat template, shuffling, cache, loader."""

    datasets: Datasets = ()
    """The datasets to train on, merged in this order. Required."""
    test_datasets: Datasets = ()
    """Held-out datasets. Excludes `val_set_size`."""
    dataset_mixing: MixingSection | None = None
    """What the datasets' weights mean, and when an epoch ends. Empty: `by: repeats`. Held-out data
    is never mixed."""
    pretraining_dataset: Datasets = ()
    """Text to train on as an endless stream, read, tokenised and packed while the run goes on.
    Needs `max_steps`. `type` is empty, `pretrain` or `completion` for raw text, or any other
    format. `datasets` beside it are streamed too, mixed by `weight`."""
    streaming: bool | None = None
    """Read `datasets` as an endless stream instead of preparing them. Needs `max_steps`."""
    val_set_size: NotNegative | NotNegativeFloat = 0
    """Held-out part of the data, split off by a seeded shuffle before packing: more than 1 is a
    number of rows, below 1 a share. 0: none."""
    dataset_prepared_path: str | None = None
    """Folder of the cache of tokenised data. A cache is used only if file content, tokenizer,
    template and every option that changes tokens are the same. What was downloaded or unpacked
    lies under `sources` in it. Empty: `last_run_prepared`."""
    num_dataset_shards_to_save: Positive | None = None
    """Number of files of the cache, shared out over the datasets by rows, at least one each;
    `preprocess_shards` of a dataset goes before it. The data is the same. Empty: files of about
    4,096 rows."""
    skip_prepare_dataset: bool | None = None
    """Hand the rows to the trainer as they are. newtune always prepares; rows that are tokenised
    already (empty `type`) pass unchanged."""
    dataset_shard_num: Positive | None = None
    """Cut the merged data into so many pieces and use the one that `dataset_shard_idx` names."""
    dataset_shard_idx: NotNegative | None = None
    """Which piece of the merged data to use, counted from 0. Needs `dataset_shard_num`."""
    dataset_num_proc: Positive | None = None
    """Processes that tokenise; 1: threads of the run's own process. Empty: as many as the machine
    has cores, when these are more than four and there are rows enough to be worth their start."""
    dataset_keep_in_memory: bool | None = None
    """Hold the data in memory while it is prepared."""
    dataset_exact_deduplication: bool = False
    """Drop rows that occurred before (equal tokens and labels), within training data, within
    held-out data, and from training data what `test_datasets` hold. The counts say how many."""
    shuffle_merged_datasets: bool = True
    """Shuffle the merged data, by `seed`. False: the order of the files. Each epoch draws its own
    order all the same, unless `curriculum_sampling` is on, which goes before this key. A stream is
    shuffled in its buffer (`streaming_multipack_buffer_size`); false keeps its order."""
    shuffle_before_merging_datasets: bool = False
    """Shuffle each dataset by itself before merging."""
    train_on_inputs: bool = False
    """Train prompts too, not answers only."""
    chat_template: str | None = None
    """Chat template: a name, `tokenizer_default`, `tokenizer_default_fallback_NAME` or `jinja`.
    Saved with the tokenizer. Empty: the tokenizer's own."""
    chat_template_jinja: str | None = None
    """The template itself, or a file that holds it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables handed to the chat template."""
    default_system_message: str | None = None
    """System text of rows that have none of their own."""
    eot_tokens: Strings | None = None
    """Texts that end a turn in the chat template. Empty: every special token of the tokenizer that
    does not open a turn."""
    push_dataset_to_hub: str | None = None
    """Hub id that the prepared data is uploaded to, before the training begins: tokens and labels,
    `train` and, if rows are held out, `test`. A dataset without `type` reads it. See
    `hub_private_repo`."""
    hf_use_auth_token: bool | None = None
    """Use the hub token of this machine. The hub client always does when one is stored; false is
    refused."""
    dataloader_num_workers: NotNegative | None = None
    """Processes that make batches ahead. Empty: 0, in the training process."""
    dataloader_pin_memory: bool | None = None
    """Put batches into page-locked memory. Empty: with a GPU."""
    dataloader_prefetch_factor: Positive | None = None
    """Batches that each loader process makes ahead."""
    dataloader_drop_last: bool | None = None
    """Leave an epoch's last, incomplete batch out. newtune trains every example."""
    remove_unused_columns: bool | None = None
    """Drop columns that the model does not take. newtune's batches hold nothing else, so this
    changes nothing."""
    accelerator_config: dict[str, Any] | None = None
    """accelerate's data-loader options."""
