"""Whether a sequence may hold several examples, which then must not see each other."""

from newtune.config.run import RunConfig


def shares_sequences(config: RunConfig) -> bool:
    """Say whether examples share sequences: packs, or streamed documents joined to full rows."""
    sequence = config.sequence
    joined = bool(config.data.pretraining_dataset and sequence.pretraining_sample_concatenation)
    return sequence.sample_packing or (joined and sequence.pretrain_multipack_attn)
