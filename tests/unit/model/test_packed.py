"""The layer over packed weights is the linear layer of the weights that they stand for."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from newtune.errors import ModelError
from newtune.model.packed import FORMS, PackedLinear
from newtune.model.packed_weights import unpack_awq, unpack_torchao
from newtune.model.torchao_files import packed_layers
from tiny_quantized import GROUP, PACKERS, needs_gptqmodel, needs_torchao

LAST_BITS = {torch.float32: 22, torch.bfloat16: 7, torch.float16: 9}


FORMATS = {  # packed as: bytes that a weight takes at most
    "awq": 0.7,
    "torchao": 1.1,
    "torchao-4": 1.2,
    "torchao-float8": 1.1,
}
every_format = pytest.mark.parametrize("form", FORMATS)


def layer_and_weight(form="awq"):
    generator = torch.Generator().manual_seed(0)
    parts, weight = PACKERS[form](0.1 * torch.randn(64, 128, generator=generator))
    unpack = FORMS[form.partition("-")[0]].unpack
    return PackedLinear(nn.Linear(128, 64), parts, unpack), weight


def test_two_columns_by_hand():
    """0x…: the first column lies in bits 0 to 3, the second in 16 to 19."""
    words = torch.tensor([[0x00090005]], dtype=torch.int32)
    zeros = torch.tensor([[0x00010002]], dtype=torch.int32)
    scales = torch.full((1, 8), 0.5, dtype=torch.float16)
    weight = unpack_awq(words, zeros, scales)
    assert weight[:2, 0].tolist() == [0.5 * (5 - 2), 0.5 * (9 - 1)]


def test_blocks_of_one_scale_each_by_hand():
    """Two rows, cut into two blocks of two columns each."""
    codes = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.int8)
    scales = torch.tensor([[1.0, 10.0], [0.5, 2.0]])
    zeros = torch.tensor([[0, 3], [1, 0]], dtype=torch.int8)
    expected = [[1, 2, 0, 10], [2, 2.5, 14, 16]]
    assert unpack_torchao(codes, scales, zeros).tolist() == expected
    whole = unpack_torchao(codes, torch.tensor([[2.0]], dtype=torch.bfloat16))
    assert whole.dtype == torch.bfloat16
    assert whole.tolist() == (2.0 * codes).tolist()


@every_format
@pytest.mark.parametrize("dtype", LAST_BITS, ids=str)
def test_it_multiplies_in_the_format_of_its_input(dtype, form):
    layer, weight = layer_and_weight(form)
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
    assert torch.equal(layer.weight.float(), weight)  # whatever went through it


@every_format
def test_nothing_unpacked_is_kept_for_the_backward_pass(form):
    layer, weight = layer_and_weight(form)
    kept = []
    pack = lambda tensor: kept.append(tensor) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(2, 128, requires_grad=True))
    assert kept
    assert sum(tensor.nbytes for tensor in kept) <= FORMATS[form] * weight.numel()


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


def _saved(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return [str(folder / "model.safetensors")]


def test_the_files_tell_which_layers_torchao_packed_and_how(tmp_path):
    layer, _ = layer_and_weight("torchao-4")
    parts = {f"a.{name}": tensor for name, tensor in layer.named_buffers()}
    files = _saved(tmp_path, {**parts, "model.b.weight": torch.zeros(4, 4)})
    linear = {"model.a": (64, 128), "model.b": (4, 4)}
    [(name, buffers)] = packed_layers(files, linear, prefix="model.")
    assert name == "model.a"
    for own, tensor in layer.named_buffers():
        assert buffers[own].is_meta
        assert (buffers[own].shape, buffers[own].dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a.weight": torch.zeros(64, 128)}, "nothing of this checkpoint is packed"),
        ({"a._weight_qdata": torch.zeros(64, 64, dtype=torch.int8)}, "not one by one as"),
    ],
)
def test_files_that_torchao_wrote_otherwise_are_refused(tmp_path, tensors, says):
    with pytest.raises(ModelError, match=says):
        list(packed_layers(_saved(tmp_path, tensors), {"a": (64, 128)}, prefix="model."))


def _quantised_by_torchao():
    """Yield torchao's own weights, of every width and cut that its plain forms have."""
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerAxis,
        PerGroup,
        PerRow,
        PerTensor,
        quantize_,
    )

    cuts = (PerRow(), PerTensor(), PerGroup(16))
    whole = [Int8WeightOnlyConfig(granularity=cut) for cut in cuts]
    floats = [
        Float8WeightOnlyConfig(weight_dtype=kind)
        for kind in (torch.float8_e4m3fn, torch.float8_e5m2)
    ]
    few = [
        IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), cut, mapping_type=mapping)
        for bits in range(1, 9)
        for cut in (PerGroup(32), PerAxis(0))
        for mapping in (MappingType.SYMMETRIC, MappingType.ASYMMETRIC)
    ]
    torch.manual_seed(0)
    for config in (*whole, *floats, *few):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            layer = nn.Linear(64, 32, bias=False).to(dtype)
            quantize_(layer, config)
            yield layer


@needs_torchao
def test_torchaos_own_weights_are_unpacked_as_torchao_does_it_to_the_last_bit():
    x = torch.randn(8, 64)
    for count, layer in enumerate(_quantised_by_torchao()):
        parts = {"qdata": layer.weight.qdata, "scale": layer.weight.scale}
        if layer.weight.qdata.dtype == torch.int8:
            parts["zero_point"] = layer.weight.zero_point
        ours = PackedLinear(nn.Linear(64, 32, bias=False), parts, unpack_torchao)
        theirs = layer.weight.dequantize()
        assert torch.equal(ours.weight.to(theirs.dtype), theirs), count
        exact = x.to(theirs.dtype) @ theirs.T
        off = float(exact.abs().max()) / 2 ** (LAST_BITS[theirs.dtype] - 1)
        torch.testing.assert_close(ours(x.to(theirs.dtype)), exact, rtol=0, atol=off)
    assert count == 3 * (3 + 2 + 32) - 1
