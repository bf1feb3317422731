"""Old spellings are translated, each with a notice."""

import pytest

from configs import problems, valid
from newtune.config.legacy import ATTENTION_FLAGS, LEFT_OUT, RENAMED
from newtune.config.run import SECTION_OF
from newtune.config.yaml_file import EMPTY


@pytest.mark.parametrize(("flag", "name"), ATTENTION_FLAGS.items())
def test_attention_flags(flag: str, name: str) -> None:
    config = valid(**{flag: True})
    assert config.compute.attn_implementation == name
    assert config.notices == (f"`{flag}` is now `attn_implementation: {name}`.",)


@pytest.mark.parametrize("flag", ATTENTION_FLAGS)
@pytest.mark.parametrize("off", [False, EMPTY, None])
def test_attention_flags_that_are_off(flag: str, off: object) -> None:
    config = valid(**{flag: off})
    assert config.compute.attn_implementation is None
    assert config.notices == ()


def test_two_attention_flags_contradict() -> None:
    assert problems(flash_attention=True, sdp_attention=True) == [
        "flash_attention: asks for another attention implementation than `sdp_attention`"
    ]


def test_old_and_new_spelling_may_agree_but_not_contradict() -> None:
    agreeing = valid(flash_attention=True, attn_implementation="flash_attention_2")
    assert agreeing.compute.attn_implementation == "flash_attention_2"
    (problem,) = problems(flash_attention=True, attn_implementation="sdpa")
    assert problem.startswith("flash_attention: contradicts `attn_implementation: sdpa`")


SAMPLES = {
    "dataset_processes": 4,
    "evaluation_strategy": "no",
    "noisy_embedding_alpha": 5.0,
    "pretrain_multipack_buffer_size": 10,
    "type_of_model": "LlamaForCausalLM",
    "model_revision": "main",
    "model_kwargs": {"a": 1},
    "model_config": {"a": 1},
    "push_to_hub_model_id": "a/b",
    "lora_modules_to_train": ["embed_tokens"],
    "lora_layers_to_transform": [0, 1],
    "sequence_parallel_degree": 2,
}


@pytest.mark.parametrize("old", sorted(SAMPLES))
def test_renamed_keys(old: str) -> None:
    config = valid(**{old: SAMPLES[old]})
    key = RENAMED[old]
    value = getattr(config, SECTION_OF[key]).peek(key)
    assert (list(value) if isinstance(value, tuple) else value) == SAMPLES[old]
    assert f"`{old}` is now `{key}`." in config.notices


@pytest.mark.parametrize(
    ("old", "value"),
    [("dpo_beta", 0.1)],
)
def test_renamed_keys_that_are_refused_keep_the_name_the_user_wrote(
    old: str, value: object
) -> None:
    assert any(problem.startswith(f"{old}: known, but") for problem in problems(**{old: value}))


def test_every_renamed_key_is_tested() -> None:
    assert set(RENAMED) == {*SAMPLES, "dpo_beta", "load_4bit"}


@pytest.mark.parametrize("key", LEFT_OUT)
def test_keys_left_out(key: str) -> None:
    value: object = "x" if key == "axolotl_config_path" else True
    if key in ("gptq_groupsize", "gptq_bits", "sample_packing_seq_len_multiplier"):
        value = 4
    (notice,) = valid(**{key: value}).notices
    assert notice.startswith(f"`{key}` was left out: ")


def test_rope_settings() -> None:
    config = valid(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=10000.0)
    assert config.model.overrides_of_model_config == {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_theta": 10000.0,
    }
    assert len(config.notices) == 2


def test_packed_length() -> None:
    config = valid(max_packed_sequence_len=2048)
    assert config.sequence.sequence_len == 2048
    assert config.sequence.sample_packing is True


def test_tokens_by_role() -> None:
    config = valid(tokens={"pad_token": "[PAD]"})
    assert config.tokenizer.special_tokens is not None
    assert config.tokenizer.special_tokens.pad_token == "[PAD]"
    assert config.tokenizer.tokens is None


def test_bf16_full() -> None:
    config = valid(bf16="full")
    assert config.compute.bf16 is True
    assert len(config.notices) == 1


@pytest.mark.parametrize("variant", ["unsloth", "offload", "offload_disk"])
def test_checkpointing_variants(variant: str) -> None:
    config = valid(gradient_checkpointing=variant)
    assert config.compute.gradient_checkpointing is True
    assert variant in config.notices[0]


@pytest.mark.parametrize(("old", "name"), [("adamw_hf", "adamw_torch"), ("lion", "lion_32bit")])
def test_optimizer_names(old: str, name: str) -> None:
    assert valid(optimizer=old).training.optimizer == name


def test_quoted_learning_rate() -> None:
    assert valid(learning_rate="2e-4").training.learning_rate == 2e-4


def test_full_shart() -> None:
    found = problems(fsdp=["full_shart", "auto_wrap"])
    assert "fsdp.0: `full_shart` is no sharding option; did you mean `full_shard`?" in found


def test_fsdp_list_becomes_options() -> None:
    from newtune.config.legacy import translate

    values: dict[str, object] = {
        "fsdp": ["full_shard", "offload", "auto_wrap"],
        "fsdp_config": {"fsdp_limit_all_gathers": True, "fsdp_version": 1},
    }
    said = translate(values, frozenset())
    assert values == {
        "fsdp_version": 2,
        "fsdp_config": {
            "limit_all_gathers": True,
            "reshard_after_forward": True,
            "offload_params": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        },
    }
    assert said.written_as["fsdp_config.limit_all_gathers"] == "fsdp_config.fsdp_limit_all_gathers"
    assert len(said.notices) == 5


@pytest.mark.parametrize("given", ["allenai/c4", {"path": "allenai/c4"}])
def test_pretraining_shorthand(given: object) -> None:
    from newtune.config.legacy import translate

    values = {"pretraining_dataset": given}
    translate(values, frozenset())
    assert values == {"pretraining_dataset": [{"path": "allenai/c4"}]}


@pytest.mark.parametrize(
    ("entry", "today"),
    [
        ({"train_on_split": "train"}, {"split": "train"}),
        ({"train_on_split": EMPTY}, {}),
        (
            {"type": "sharegpt", "conversation": "chatml", "strict": False},
            {
                "type": "chat_template",
                "chat_template": "chatml",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
            },
        ),
        (
            {"type": "sharegpt.load_role"},
            {
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "role", "content": "value"},
            },
        ),
        (
            {"message_field_role": "from", "message_field_content": "value"},
            {"message_property_mappings": {"role": "from", "content": "value"}},
        ),
        (
            {"field_human": "person", "field_model": "bot"},
            {"roles": {"user": ["person"], "assistant": ["bot"]}},
        ),
        (
            {"roles": {"input": ["human"], "output": ["gpt"]}},
            {"roles": {"user": ["human"], "assistant": ["gpt"]}},
        ),
    ],
)
def test_dataset_entries(entry: dict[str, object], today: dict[str, object]) -> None:
    old = valid(datasets=[{"path": "a", "type": "completion", **entry}])
    new = valid(datasets=[{"path": "a", "type": "completion", **today}])
    assert old.data == new.data
    assert bool(old.notices) == (EMPTY not in entry.values())


def test_wrong_types_keep_the_old_name() -> None:
    assert problems(flash_attention="yes") == [
        "flash_attention: got `yes` (text); expected true or false"
    ]
    assert problems(datasets=[{"path": "a", "train_on_split": 3}]) == [
        "datasets.0.train_on_split: got `3` (a number); expected text"
    ]
