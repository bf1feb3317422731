"""The layer over packed weights is the linear layer of the weights that they stand for."""

import pytest
import torch
from torch import nn

from newtune.model.packed import AwqLinear
from newtune.model.packed_weights import unpack_awq
from tiny_quantized import GROUP, PACKERS, needs_gptqmodel

LAST_BITS = {torch.float32: 22, torch.bfloat16: 7, torch.float16: 9}


def layer_and_weight():
    generator = torch.Generator().manual_seed(0)
    parts, weight = PACKERS["awq"](0.1 * torch.randn(64, 128, generator=generator))
    layer = AwqLinear(nn.Linear(128, 64), GROUP)
    for name, tensor in parts.items():
        setattr(layer, name, tensor)
    return layer, weight


def test_two_columns_by_hand():
    """0x…: the first column lies in bits 0 to 3, the second in 16 to 19."""
    words = torch.tensor([[0x00090005]], dtype=torch.int32)
    zeros = torch.tensor([[0x00010002]], dtype=torch.int32)
    scales = torch.full((1, 8), 0.5, dtype=torch.float16)
    weight = unpack_awq(words, zeros, scales)
    assert weight[:2, 0].tolist() == [0.5 * (5 - 2), 0.5 * (9 - 1)]


@pytest.mark.parametrize("dtype", LAST_BITS, ids=str)
def test_it_multiplies_in_the_format_of_its_input(dtype):
    layer, weight = layer_and_weight()
    assert torch.equal(layer.weight.float(), weight)
    plain = nn.functional.linear
    for size in (1, 7):
        x = torch.randn(size, 3, 128).to(dtype).requires_grad_()
        y = torch.empty_like(x).copy_(x.detach()).requires_grad_()
        got, expected = layer(x), plain(y, weight.to(dtype), layer.bias.to(dtype))
        off = float(expected.detach().abs().max()) / 2 ** LAST_BITS[dtype]
        torch.testing.assert_close(got, expected, rtol=0, atol=off)
        got.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(
            x.grad, y.grad, rtol=0, atol=8 * float(y.grad.abs().max()) / 2 ** LAST_BITS[dtype]
        )
    assert layer.scales.dtype == torch.float16  # whatever went through it


def test_nothing_unpacked_is_kept_for_the_backward_pass():
    layer, weight = layer_and_weight()
    kept = []
    pack = lambda tensor: kept.append(tensor) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(2, 128, requires_grad=True))
    assert kept
    assert max(tensor.nbytes for tensor in kept) <= weight.numel() // 2


def test_under_autocast_it_is_the_plain_layer():
    layer, weight = layer_and_weight()
    x = torch.randn(5, 128)
    with torch.autocast("cpu", torch.bfloat16):
        expected = nn.functional.linear(x, weight, layer.bias)
        got = layer(x)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(
        got, expected, rtol=0, atol=float(expected.detach().abs().max()) / 2**7
    )


@needs_gptqmodel
def test_gptqmodels_own_layer_unpacks_the_same_and_multiplies_in_float16():
    from newtune.model.gptq import import_quietly

    import_quietly()
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    layer, weight = layer_and_weight()
    sizes = {"in_features": 128, "out_features": 64, "bits": 4, "group_size": GROUP}
    other = AwqTorchLinear(**sizes, sym=False, desc_act=False, register_buffers=True)
    for name in ("qweight", "qzeros", "scales"):
        setattr(other, name, getattr(layer, name).clone())
    other.post_init()
    other.eval()
    x = torch.randn(32, 128)
    exact = x @ weight.T
    off = (other(x) - exact).abs().max() / exact.abs().max()
    assert 1e-5 < off < 1e-3  # ours: below 1e-6
    layer.bias = None
    assert (layer(x) - exact).abs().max() / exact.abs().max() < 1e-6
    other(x.bfloat16())
    assert not torch.equal(other.scales.half(), layer.scales)  # rounded, for good
