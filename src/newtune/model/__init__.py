"""Checkpoints to models ready to train: tokenizer, weights, adapter, attention, output head."""
