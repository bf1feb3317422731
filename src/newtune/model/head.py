"""The output head that computes the loss inside the model's forward, without all the logits.

`OutputHead` stands where the model's `lm_head` stood, over the same parameter under the same name.
Called as usual it gives logits. While `loss_at` holds labels for it, it gives the two numbers
[sum of losses, trained tokens] instead: inside the model's forward, where a sharded engine has
gathered its weight. What a family does to its logits afterwards (a soft-cap, a scale) happens here,
and the model's own is switched off meanwhile.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from newtune.errors import ModelError
from newtune.kernels.linear_cross_entropy import linear_cross_entropy
from newtune.model.logits import absorbed
from newtune.model.placement import replace_module
from newtune.types import IGNORE_INDEX, Batch

FORWARD_KEYS = (
    "input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
)  # fmt: skip


class OutputHead(nn.Linear):
    """A linear layer to the vocabulary that can answer with its loss."""

    def __init__(self, layer: nn.Linear) -> None:
        bias = layer.bias is not None
        rows, columns = layer.weight.shape
        super().__init__(columns, rows, bias=bias, device="meta")
        self.weight = layer.weight
        if bias:
            self.bias = layer.bias
        self.targets: Tensor | None = None
        self.softcap: float | None = None
        self.scale: float = 1.0

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits, or [loss sum, trained tokens] in float32 while labels are held."""
        if self.targets is None:
            # Every row's last position is a strided view, for which torch would copy the whole
            # weight once per row.
            return super().forward(hidden.contiguous())
        return self.loss(hidden, self.weight)

    def loss(
        self,
        hidden: Float[Tensor, "batch seq hidden"],
        weight: Float[Tensor, "vocab hidden"],
        low_rank: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "2"]:
        """Return [loss sum, trained tokens] for a weight that need not be the layer's own.

        `low_rank`: (tensor [tokens, rank] for the trained tokens in order, matrix [vocab, rank]).
        """
        targets = self.trained(hidden)
        loss = linear_cross_entropy(
            self.rows(hidden),
            weight,
            targets,
            bias=self.bias,
            low_rank=low_rank,
            softcap=self.softcap,
            scale=self.scale,
        )
        return torch.stack([loss.float(), torch.tensor(float(len(targets))).to(loss.device)])

    def trained(self, hidden: Tensor) -> Int[Tensor, " tokens"]:
        """Return the labels of the trained tokens."""
        targets = self._held(hidden)
        return targets[targets != IGNORE_INDEX]

    def rows(self, hidden: Tensor) -> Float[Tensor, "tokens hidden"]:
        """Return the hidden states that predict the trained tokens."""
        return hidden[self._held(hidden) != IGNORE_INDEX]

    def _held(self, hidden: Tensor) -> Tensor:
        if self.targets is None or self.targets.shape != hidden.shape[:-1]:
            raise ModelError(
                f"the output head got hidden states of shape {tuple(hidden.shape)} for labels of "
                f"shape {None if self.targets is None else tuple(self.targets.shape)}; this "
                "model drops positions before its head, which newtune cannot train."
            )
        return self.targets.to(hidden.device)


class LoraOutputHead(LoraLinear):
    """A LoRA on the output head: its low-rank product joins the logits inside the loss."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits, or [loss sum, trained tokens] while labels are held."""
        head = self.get_base_layer()
        assert isinstance(head, OutputHead)
        if head.targets is None:
            logits: Tensor = super().forward(x, *args, **kwargs)
            return logits
        if self.disable_adapters or self.merged or not self.active_adapters:
            return head.loss(x, head.weight)
        pairs = [self._low_rank(name, head.rows(x)) for name in self.active_adapters]
        inner, up = torch.cat([one for one, _ in pairs], -1), torch.cat([b for _, b in pairs], -1)
        return head.loss(x, head.weight, low_rank=(inner, up))

    def _low_rank(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return s · A x [tokens, rank] and B [vocab, rank] of one adapter."""
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(down, Tensor)
        assert isinstance(up, Tensor)
        rows = self.lora_dropout[name](rows.to(down.dtype))
        return nn.functional.linear(rows, down) * self.scaling[name], up


class TokensOutputHead(TrainableTokensLayer):
    """The output head with some rows trained (added tokens)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits, or [loss sum, trained tokens] while labels are held."""
        head = self.get_base_layer()
        assert isinstance(head, OutputHead)
        if head.targets is None:
            logits: Tensor = super().forward(x, *args, **kwargs)
            return logits
        active = [] if self.disable_adapters or self.merged else self.active_adapters
        return head.loss(x, self.get_merged_weights(active))


def install_head(model: PreTrainedModel) -> None:
    """Put an OutputHead where the model's output layer is; the parameter stays the same object.

    Raises:
        ModelError: the model has no linear output layer.
    """
    name = head_name(model)
    layer = model.get_submodule(name)
    if isinstance(layer, OutputHead):
        return
    if type(layer) is not nn.Linear:
        raise ModelError(
            f"the output head `{name}` of {type(model).__name__} is a {type(layer).__name__}; "
            "newtune trains models whose output head is a plain linear layer."
        )
    replace_module(model, name, OutputHead(layer))


def install_adapted_heads(model: PeftModel) -> None:
    """Replace what PEFT put around or beside the output head by layers that answer with the loss.

    That is its layer for trained rows, and the copy of tied embeddings it makes for
    `modules_to_save`. Parameters and their names stay.
    """
    wrapper = base_model(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, layer in list(wrapper.named_modules()):
        if type(layer) is TrainableTokensLayer:
            wrapper.set_submodule(name, _token_head(layer))
        elif type(layer) is nn.Linear and name.startswith("modules_to_save."):
            wrapper.set_submodule(name, OutputHead(layer))


def _token_head(layer: TrainableTokensLayer) -> TokensOutputHead:
    adapter = layer.active_adapters[0]
    head = TokensOutputHead(layer.base_layer, adapter, tied_adapter=layer.tied_adapter)
    head.trainable_tokens_delta = layer.trainable_tokens_delta
    head.trainable_tokens_original = layer.trainable_tokens_original
    head.token_indices = layer.token_indices
    return head


def head_name(model: nn.Module) -> str:
    """Return the dotted name of the output head.

    Raises:
        ModelError: the model has none; it is no language model.
    """
    base = base_model(model)
    head = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in base.named_modules():
        if head is not None and module is head:
            return str(name)
    raise ModelError(
        f"{type(base).__name__} has no output head over the vocabulary; newtune trains causal "
        "language models (`model_type: AutoModelForCausalLM`)."
    )


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside an adapter, DDP or DeepSpeed, or the model itself."""
    while not isinstance(model, PeftModel | PreTrainedModel):
        model = model.get_submodule("module")
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def shift_labels(
    labels: Int[Tensor, "batch seq"], position_ids: Int[Tensor, "batch seq"]
) -> Int[Tensor, "batch seq"]:
    """Return for each position the label of the next one, IGNORE_INDEX where an example ends.

    positions [0 1 2 | 0 1], labels [a b c | d e] → [b c - | e -]
    """
    targets = torch.full_like(labels, IGNORE_INDEX)
    follows = position_ids[:, 1:] == position_ids[:, :-1] + 1
    targets[:, :-1] = torch.where(follows, labels[:, 1:], IGNORE_INDEX)
    return targets


@contextmanager
def loss_at(model: nn.Module, targets: Int[Tensor, "batch seq"]) -> Iterator[None]:
    """Within, a forward of the model returns [loss sum, trained tokens] as its `logits`.

    `targets[:, t]` is what position t is to predict (`shift_labels`).
    """
    base = base_model(model)
    heads = [module for module in base.modules() if isinstance(module, OutputHead)]
    with ExitStack() as stack:
        softcap, scale = stack.enter_context(absorbed(base))
        for head in heads:
            head.targets, head.softcap, head.scale = targets, softcap, scale
        try:
            yield
        finally:
            for head in heads:
                head.targets = None


def compute_loss_sum(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the summed loss over the batch's trained tokens, in nats, and their number.

    The sum carries the gradient; divide it by the trained tokens of the whole step.
    """
    return loss_of_targets(model, batch, shift_labels(batch["labels"], batch["position_ids"]))


def loss_of_targets(
    model: nn.Module, batch: Batch, targets: Int[Tensor, "batch seq"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return what `compute_loss_sum` does, for labels that were shifted already."""
    inputs = forward_inputs(model, batch)
    with loss_at(model, targets):
        result = model(**inputs, use_cache=False).logits
    if result.shape != (2,):
        raise ModelError(
            f"the output head of {type(base_model(model)).__name__} is wrapped in a way newtune "
            "does not know: it returned logits. Leave it out of `lora_target_modules`, or name it "
            "in `lora_modules_to_save`."
        )
    return result[0], result[1].detach()


def forward_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a batch the model's forward takes."""
    base = base_model(model)
    keys: Sequence[str] = FORWARD_KEYS
    if base._is_stateful:  # it takes boundaries for packed examples, which it never gets
        keys = ("input_ids", "position_ids")
    if not takes_positions(base):
        keys = ("input_ids",)
    return {key: batch[key] for key in keys if key in batch}


def takes_positions(model: PreTrainedModel) -> bool:
    """Tell whether the forward is told positions; one that is not knows no packed examples."""
    return "position_ids" in inspect.signature(model.forward).parameters
