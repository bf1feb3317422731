"""The same seed gives the same run; another gives another."""

from runs import TinyRun, assert_same, packed, weights

CHANGES = {
    "steps": 3,
    "accumulation": 2,
    "dropout": 0.3,
    "training": {"neftune_noise_alpha": 5.0},
}


def result(root, *, draws_before=0, **changes):
    import torch

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
