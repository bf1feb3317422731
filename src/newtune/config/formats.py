"""The names a dataset's `type` and `chat_template` may have; nothing heavy is needed to know them.

What the names mean is in `data/formats` and `data/templates`; a test holds both to these lists.
"""

from collections.abc import Mapping

FORMATS: tuple[str, ...] = (
    "alpaca",
    "alpaca:chat",
    "alpaca:chatml",
    "alpaca:instruct",
    "alpaca:phi",
    "alpaca_chat",
    "alpaca_chat.load",
    "alpaca_chat.load_camel_ai",
    "alpaca_chat.load_concise",
    "alpaca_chat.load_no_prompt",
    "alpaca_chat.load_qa",
    "alpaca_instruct",
    "alpaca_instruct.load",
    "alpaca_instruct.load_no_prompt",
    "alpaca_w_system",
    "alpaca_w_system:chat",
    "alpaca_w_system:chatml",
    "alpaca_w_system:instruct",
    "alpaca_w_system:phi",
    "alpaca_w_system.load",
    "alpaca_w_system.load_chat",
    "alpaca_w_system.load_chatml",
    "alpaca_w_system.load_instruct",
    "alpaca_w_system.load_open_orca",
    "alpaca_w_system.load_open_orca_chatml",
    "chat_template",
    "chat_template.default",
    "chat_template.load",
    "completion",
    "concisechoice",
    "concisechoice:chat",
    "context_qa",
    "context_qa.load",
    "context_qa.load_404",
    "context_qa.load_v2",
    "creative_acr.load_answer",
    "creative_acr.load_critique",
    "creative_acr.load_revise",
    "explainchoice",
    "explainchoice:chat",
    "gpteacher",
    "gpteacher:chat",
    "input_output",
    "jeopardy",
    "jeopardy:chat",
    "metharme",
    "metharme.load",
    "oasst",
    "oasst:chat",
    "orcamini",
    "orcamini.load",
    "pretrain",
    "pygmalion",
    "pygmalion.load",
    "reflection",
    "sharegpt",
    "sharegpt.load_glaive",
    "sharegpt.load_guanaco",
    "sharegpt.load_role",
    "sharegpt.load_ultrachat",
    "summarizetldr",
    "summarizetldr:chat",
)
"""Formats by name; besides, `completion:COLUMN` and `package.module:function`."""

_PREFERENCE = "holds pairs or judged answers, which are for preference training: it needs `rl`"

REFUSED_FORMATS: Mapping[str, str] = {
    "user_defined": "is written as a mapping: `type:` with `field_instruction`, `format`, ... "
    "below it",
    "llama2_chat": "is `type: chat_template` with `field_messages: conversations`, "
    "`message_property_mappings: {role: from, content: value}` and `chat_template: llama2`",
    "sharegpt_jokes": "has no public data any more; write the rows as `messages` and use "
    "`type: chat_template`",
    "chat_template.argilla": _PREFERENCE,
    "chatml.intel": _PREFERENCE,
    "chatml.argilla": _PREFERENCE,
    "chatml.argilla_chat": _PREFERENCE,
    "chatml.icr": _PREFERENCE,
    "chatml.ultra": _PREFERENCE,
    "chatml.prompt_pairs": _PREFERENCE,
    "llama3.intel": _PREFERENCE,
    "llama3.argilla": _PREFERENCE,
    "llama3.argilla_chat": _PREFERENCE,
    "llama3.icr": _PREFERENCE,
    "llama3.ultra": _PREFERENCE,
    "llama3.prompt_pairs": _PREFERENCE,
    "zephyr.nectar": _PREFERENCE,
    "passthrough": _PREFERENCE,
    "bradley_terry.chat_template": "holds pairs, which train a reward model: it needs "
    "`reward_model: true`",
    "stepwise_supervised": "holds judged steps, which train a process reward model: it needs "
    "`process_reward_model: true`",
}
"""Formats of public configurations that are something else here, and what to write."""

TEMPLATES: tuple[str, ...] = (
    "alpaca",
    "aya",
    "chatml",
    "cohere",
    "command_r",
    "deepseek_v2",
    "deepseek_v3",
    "exaone",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3n",
    "granite",
    "granitemoe",
    "internlm2",
    "jamba",
    "llama2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "llama3_3",
    "llama4",
    "metharme",
    "mistral",
    "mistral_v1",
    "mistral_v2v3",
    "mistral_v3_tekken",
    "mistral_v7_tekken",
    "olmo",
    "phi_3",
    "phi_35",
    "phi_4",
    "qwen_25",
    "qwen3",
    "smollm2",
    "tulu",
    "vicuna",
    "yi",
    "zephyr",
)
"""Chat templates by name; besides, `tokenizer_default`, its fallbacks and `jinja`."""

TEMPLATE_SOURCES = ("tokenizer_default", "jinja")
"""Names that say where a template is instead of which."""

FALLBACK = "tokenizer_default_fallback_"
"""Before a name: the tokenizer's own template, or that one where it has none."""

_OWN = "is long and changes with the checkpoint; use the tokenizer's own"
_IMAGES = "is for a model with images or sound, which newtune does not train"

REFUSED_TEMPLATES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "command_a",
            "command_a_rag",
            "command_a_tool_use",
            "devstral",
            "exaone4",
            "falcon_h1",
            "gemma4",
            "gemma4_unified",
            "glm4",
            "gpt_oss",
            "nemotron_h",
            "olmo3",
            "phi_4_reasoning",
            "qwen3_5",
            "seed_oss",
            "smollm3",
        ),
        _OWN,
    ),
    **dict.fromkeys(
        (
            "internvl3_5",
            "lfm2_vl",
            "llama3_2_vision",
            "llava",
            "magistral",
            "mistral_small_3_1",
            "pixtral",
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "smolvlm",
            "smolvlm2",
            "voxtral",
        ),
        _IMAGES,
    ),
}
"""Names of public configurations that newtune does not ship, and why."""
