"""The nouns of newtune, as plain data.

*row*: a raw record · *conversation*: the messages of one row · *example*: the tokens of one row ·
*pack*: examples sharing one sequence · *batch*: tensors of one forward on one device · *step*: one
optimizer update · *trained token*: a token whose label is not IGNORE_INDEX.

Axis names of tensors: `batch` sequences, `seq` positions, `vocab` tokens of the vocabulary,
`hidden` model width, `tokens` positions of several sequences laid end to end.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

IGNORE_INDEX = -100
"""The label of a token that is not trained."""


@dataclass(frozen=True)
class Example:
    """The tokens of one row. `labels[t]` is `input_ids[t]` where trained, else IGNORE_INDEX.

    Labels are not shifted: position t's label is scored against the prediction made at t - 1.
    """

    input_ids: "NDArray[np.int32]"
    labels: "NDArray[np.int32]"


class Batch(TypedDict):
    """The tensors of one forward; the whole contract between data and model.

    There is never an attention mask. `position_ids` restart at 0 where an example begins, and
    attention must not cross a restart; transformers derives that itself when it gets no mask.
    Padding, if any, stands at the right, as an example of its own (positions restart) without
    trained tokens. `cu_seq_lens_*` and `max_length_*` (transformers' FlashAttentionKwargs) carry
    the same boundaries for kernels that take them; they are present when `batch` is 1.
    """

    input_ids: "Tensor"  # Int[Tensor, "batch seq"]
    labels: "Tensor"  # Int[Tensor, "batch seq"]
    position_ids: "Tensor"  # Int[Tensor, "batch seq"]
    cu_seq_lens_q: NotRequired["Tensor"]  # Int32[Tensor, "examples+1"]
    cu_seq_lens_k: NotRequired["Tensor"]
    max_length_q: NotRequired[int]
    max_length_k: NotRequired[int]
