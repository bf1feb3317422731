"""The methods of transformers' Trainer that newtune overrides, and their signatures.

Most are not public. An upgrade that changes one fails here first, with its name.
"""

import inspect

import pytest
from transformers import Trainer

from newtune.training.resumable import ResumableTrainer
from newtune.training.trainer import NewtuneTrainer

OVERRIDDEN = {
    "_clip_grad_norm": ("self", "model"),
    "_determine_best_metric": ("self", "metrics", "trial"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "_get_num_items_in_batch": ("self", "batch_samples", "device"),
    "_load_best_model": ("self",),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_rng_state": ("self", "checkpoint"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_save_checkpoint": ("self", "model", "trial"),
    "autocast_smart_context_manager": ("self", "cache_enabled"),
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_optimizer": ("self", "model"),
    "create_scheduler": ("self", "num_training_steps", "optimizer"),
    "evaluate": ("self", "eval_dataset", "ignore_keys", "metric_key_prefix"),
    "floating_point_ops": ("self", "inputs"),
    "get_train_dataloader": ("self",),
    "log": ("self", "logs", "start_time"),
    "train": ("self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "training_step": ("self", "model", "inputs", "num_items_in_batch"),
}
CALLED = {
    "_load_scaler": ("self", "checkpoint"),
    "_save_scaler": ("self", "output_dir"),
    "get_optimizer_cls_and_kwargs": ("args", "model"),
}


def parameters(function):
    return tuple(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_has_the_signature_we_know(name):
    assert parameters(getattr(Trainer, name)) == OVERRIDDEN[name]
    assert parameters(getattr(NewtuneTrainer, name)) == OVERRIDDEN[name]


@pytest.mark.parametrize("name", CALLED)
def test_a_called_method_has_the_signature_we_know(name):
    assert parameters(getattr(Trainer, name)) == CALLED[name]


def test_no_override_is_missing_from_the_list():
    ours = {
        name
        for written in (ResumableTrainer, NewtuneTrainer)
        for name in vars(written)
        if callable(getattr(written, name))
    }
    overridden = {name for name in ours & set(dir(Trainer)) if not name.startswith("__")}
    assert overridden == set(OVERRIDDEN)


def test_the_loss_is_known_to_be_scaled_already():
    assert Trainer.loss_is_scaled_for_ga is None
    assert NewtuneTrainer.loss_is_scaled_for_ga is True
