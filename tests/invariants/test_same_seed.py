"""The same seed gives the same run; another gives another."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from newtune.config.load import config_from
from newtune.run import train
from runs import TinyRun, assert_same, packed, weights
from tiny import save_tiny_checkpoint

CHANGES = {
    "steps": 3,
    "accumulation": 2,
    "dropout": 0.3,
    "training": {"neftune_noise_alpha": 5.0},
}


def result(root, *, draws_before=0, **changes):
    run = TinyRun(root, **{**CHANGES, **changes})
    trainer = run.trainer()
    torch.rand(draws_before)
    trainer.train()
    return run.losses(), weights(trainer.model)


def test_the_same_seed_gives_the_same_run(tmp_path):
    losses, expected = result(tmp_path / "one")
    # what happens between building and training must not matter
    again, found = result(tmp_path / "two", draws_before=7)
    assert again == losses
    assert_same(found, expected)


def test_another_seed_draws_other_dropout_masks(tmp_path):
    losses, _ = result(tmp_path / "one")
    others, _ = result(tmp_path / "two", seed=43)
    assert losses != others


def test_evaluating_does_not_change_training(tmp_path):
    _, expected = result(tmp_path / "one")
    _, found = result(
        tmp_path / "two",
        evaluation_batches=packed(2, first=500),
        evaluation={"at_steps": frozenset({1, 2})},
    )
    assert_same(found, expected)


def test_the_seed_draws_the_adapters_first_weights(tmp_path):
    """Whatever was drawn before in this process."""
    first = {}
    for name, seed, draws in (("a", 1, 0), ("b", 1, 9), ("c", 2, 0)):
        torch.rand(draws)
        config = small_config(tmp_path, name, seed=seed)
        train(config)
        saved = load_file(Path(config.output.output_dir) / "adapter_model.safetensors")
        first[name] = {key: value for key, value in saved.items() if "lora_A" in key}
    assert_same(first["a"], first["b"])
    assert not any(torch.equal(first["a"][key], first["c"][key]) for key in first["a"])


def small_config(root, name, *, seed):
    rows = root / "rows.jsonl"
    rows.write_text('{"instruction": "Say river", "output": "river"}\n' * 4)
    model = root / "model"
    if not model.exists():
        save_tiny_checkpoint(model)
    return config_from(
        {
            "base_model": str(model),
            "datasets": [{"path": str(rows), "type": "alpaca"}],
            "adapter": "lora",
            "lora_target_linear": True,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "max_steps": 1,
            "learning_rate": 1e-9,
            "bf16": False,
            "seed": seed,
            "output_dir": str(root / name),
            "dataset_prepared_path": str(root / "cache"),
        }
    )
