"""The training loop: transformers' Trainer with newtune's loss, order, checkpoints and stops."""
