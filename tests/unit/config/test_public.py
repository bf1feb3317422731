"""Configurations as people publish them: known keys, right types, and the refusals they deserve."""

from pathlib import Path

import pytest

from newtune.config.load import load_config
from newtune.errors import ConfigError

FOLDER = Path(__file__).parent / "public"
REFUSED = {
    "dpo": {
        "rl",
        "rl_beta",
        "datasets.0.field_chosen",
        "datasets.0.field_rejected",
    },
    "llama3_kto": {"rl", "rl_beta", "kto_desirable_weight"},
    "lora_kernels": {"lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"},
    "mistral_orpo": {"rl", "orpo_alpha"},
    "phi3_fft_dora": {"do_causal_lm_eval"},
}
FILES = [file for file in sorted(FOLDER.glob("*.yaml")) if file.stem != "mixtral_unfrozen"]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_public_configs(file: Path) -> None:
    expected = REFUSED.get(file.stem, set())
    if not expected:
        load_config(file)
        return
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert {problem.path for problem in caught.value.problems} == expected
    assert all("known, but" in problem.message for problem in caught.value.problems)


def test_rows_that_stay_frozen_need_another_engine_than_deepspeed() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(FOLDER / "mixtral_unfrozen.yaml")
    (problem,) = caught.value.problems
    assert problem.path == "unfrozen_parameters.1"
    assert "names rows, which excludes `deepspeed`" in problem.message
    load_config(FOLDER / "mixtral_unfrozen.yaml", ["--deepspeed", ""])


def test_there_are_such_files() -> None:
    assert len(FILES) >= 20


def test_gemma_needs_no_word_but_the_offloading() -> None:
    (notice,) = load_config(FOLDER / "gemma_lora.yaml").notices
    assert "gradient_checkpointing" in notice
