"""How long an example may be, and how examples share sequences."""

from typing import Literal

from newtune.config.section import Integers, NotNegative, Positive, Section, Share


class SequenceSection(Section):
    """Lengths, padding and packing."""

    sequence_len: Positive = 512
    """Longest example, in tokens; when packing, the length of a pack."""
    eval_sequence_len: Positive | None = None
    """Longest example of the `test_datasets`, in tokens; where they are packed, the length of
    their packs. Empty: `sequence_len`. Data split off by `val_set_size` has the training data's
    length."""
    excess_length_strategy: Literal["drop", "truncate", "raise"] = "drop"
    """What happens to a longer example: it is dropped, cut, or an error. Raw text (`completion`)
    is cut into rows instead, and none of it is lost. The counts are always shown."""
    min_sample_len: NotNegative | None = None
    """Examples with fewer tokens are dropped, and counted. Empty: none are."""
    max_prompt_len: Positive | None = None
    """Longest prompt in tokens, for the preference objectives."""
    pad_to_sequence_len: bool = False
    """Pad every sequence to `sequence_len`: constant shapes, more computation."""
    pad_to_multiple_of: Positive | None = None
    """Pad every batch to a multiple of so many tokens; no result changes by it."""
    sample_packing: bool = False
    """Put several examples into one sequence of `sequence_len` tokens. They never see each other,
    on any attention implementation, and positions restart at each."""
    eval_sample_packing: bool | None = None
    """Pack the held-out data. Empty: as `sample_packing`."""
    sample_packing_group_size: Positive = 100_000
    """How many examples are packed together at a time."""
    sample_packing_bin_size: Positive = 200
    """Most examples in one pack."""
    sample_packing_sequentially: bool | None = None
    """Fill packs in turn, in the order that an epoch draws, instead of by what fits best: more
    air, but neighbours of the draw stay together."""
    sample_packing_mp_start_method: str | None = None
    """How the processes that pack elsewhere are started. newtune packs in one process."""
    sample_packing_eff_est: Share | None = None
    """Estimated packing efficiency. newtune counts exactly; a given value is compared with the
    measured one and the difference reported."""
    total_num_tokens: Positive | None = None
    """Estimated number of tokens in the data. newtune counts exactly; a given value is compared
    with the measured one and the difference reported."""
    total_supervised_tokens: Positive | None = None
    """Estimated number of trained tokens. newtune counts exactly, so this changes nothing."""
    pretraining_sample_concatenation: bool | None = None
    """Streamed pretraining text: join documents to full rows of `sequence_len` tokens, cut where a
    row is full; none of it is lost. They stay apart, see `pretrain_multipack_attn`."""
    pretrain_multipack_attn: bool = True
    """Streamed pretraining text: documents of one row do not see each other. False: a row is read
    as one text."""
    streaming_multipack_buffer_size: Positive = 10_000
    """Streamed data: how many examples are read, shuffled and packed together at a time."""
    batch_flattening: Literal["auto"] | bool = False
    """Lay the rows of a micro-batch end to end instead of padding them; they stay apart.
    `auto`: where the attention implementation keeps them apart."""
    multipack_real_batches: bool | None = None
    """Packs as separate rows of a batch instead of one long row. newtune's micro-batch is always
    `micro_batch_size` packs, so this changes nothing."""
    group_by_length: bool = False
    """Put examples of similar length into the same batch: less padding, less random order."""
    curriculum_sampling: bool | None = None
    """Keep the order of the files in every epoch: nothing is shuffled, and packs are filled in
    turn."""
    use_pose: bool | None = None
    """Train longer positions by skipping some (PoSE)."""
    pose_split_on_token_ids: Integers | None = None
    """Token ids at which `use_pose` may skip."""
    pose_max_context_len: Positive | None = None
    """Longest position of `use_pose`."""
    pose_num_chunks: Positive | None = None
    """Number of pieces of `use_pose`."""
