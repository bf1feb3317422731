"""The proof of a merge: a right one passes, each way of getting it wrong is refused."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from newtune.errors import ExportError
from newtune.outputs.merge import merge_layers
from newtune.outputs.predictions import (
    POSITIONS_PER_ROW,
    choose_examples,
    float32_arithmetic,
    predicting,
    trained_logits,
)
from newtune.outputs.verify import (
    MergeReport,
    compare_merged,
    read_reference,
    verify_merge,
)
from newtune.types import IGNORE_INDEX, Example
from tiny import tiny_model


def rows(count: int = 24, length: int = 20, prompt: int = 6) -> list[Example]:
    """Random rows of differing lengths whose first `prompt` tokens are not trained."""
    generator = np.random.default_rng(0)
    examples = []
    for index in range(count):
        ids = generator.integers(6, 384, length - index % 5).astype(np.int32)
        labels = ids.copy()
        labels[:prompt] = IGNORE_INDEX
        examples.append(Example(ids, labels))
    return examples


def adapted(family: str = "llama", *, dtype: torch.dtype = torch.float32, **lora) -> PeftModel:
    """A tiny model with an adapter that changes it, the same one each time."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(tiny_model(family).to(dtype), LoraConfig(**{**options, **lora}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    found = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name: module for name, module in found.items() if "lm_head" not in name}


def base_returned_as_merged(model):
    model.load_state_dict(tiny_model().state_dict())


def one_layer_dropped(model):
    name = "model.layers.1.mlp.down_proj.weight"
    model.get_parameter(name).data = tiny_model().get_parameter(name).data


def scaled_by_half(model):
    base = linear_layers(tiny_model())
    for name, layer in linear_layers(model).items():
        layer.weight.data = (layer.weight.data + base[name].weight.data) / 2


def delta_transposed(model):
    layer, base = model.model.layers[0].self_attn.q_proj, tiny_model().model.layers[0].self_attn
    delta = layer.weight.data - base.q_proj.weight.data
    layer.weight.data = base.q_proj.weight.data + delta.T


def test_a_right_merge_passes():
    report = verify_merge(
        adapted, lambda: merge_layers(adapted(), "float32"), rows(), dtype="float32"
    )
    assert report.passed, report.problems
    assert report.equal_greedy == 1.0
    assert report.kl_merged < 1e-9 < report.kl_base
    assert report.equal_greedy_base < 0.9


@pytest.mark.parametrize(
    "spoil", [base_returned_as_merged, one_layer_dropped, scaled_by_half, delta_transposed]
)
def test_a_wrong_merge_fails(spoil):
    def wrong():
        model = merge_layers(adapted(), "float32")
        spoil(model)
        return model

    report = verify_merge(adapted, wrong, rows(), dtype="bfloat16")
    assert not report.passed
    assert "KL" in " ".join(report.problems)


def test_the_base_in_place_of_the_merged_model_is_named():
    report = verify_merge(adapted, lambda: tiny_model(), rows(), dtype="float32")
    assert "adapter was lost" in report.problems[0]
    assert report.kl_share == pytest.approx(1.0)


def test_an_adapter_that_changes_nothing_is_named():
    def untrained():
        return get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear"))

    report = verify_merge(
        untrained, lambda: merge_layers(untrained(), "float32"), rows(), dtype="float32"
    )
    assert report.problems == (
        "the adapter changes nothing: base + adapter predicts exactly what the base does",
    )


def test_the_numbers_are_those_of_the_definitions():
    examples = rows(5)
    merged = merge_layers(adapted(), "float32")
    merged.model.layers[0].mlp.up_proj.weight.data += 0.02
    report = compare_merged(read_reference(adapted(), examples), merged, dtype="bfloat16")

    kls, kls_base, equal, largest = [], [], [], []
    for example in examples:  # one row at a time, all logits, no batching or selecting
        ids = torch.from_numpy(example.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            logits = [m(ids).logits[0].double() for m in (adapted(), merged, tiny_model())]
        for position in range(len(example.input_ids) - 1):
            if example.labels[position + 1] == IGNORE_INDEX:
                continue
            a, m, b = (row[position].softmax(-1) for row in logits)
            kls.append(sum(a * (a.log() - m.log())).item())
            kls_base.append(sum(a * (a.log() - b.log())).item())
            equal.append(a.argmax() == m.argmax())
            largest.append((logits[0][position] - logits[1][position]).abs().max().item())
    assert report.positions == len(kls)
    assert report.rows == 5
    assert report.kl_merged == pytest.approx(np.mean(kls), rel=1e-4)
    assert report.kl_base == pytest.approx(np.mean(kls_base), rel=1e-4)
    assert report.equal_greedy == np.mean(equal)
    assert report.largest_logit_difference == pytest.approx(max(largest), rel=1e-3)


def test_not_finite_logits_fail():
    def broken():
        model = merge_layers(adapted(), "float32")
        model.model.norm.weight.data[0] = float("nan")
        return model

    report = verify_merge(adapted, broken, rows(4), dtype="float32")
    assert report.problems == ("the logits are not finite",)


def test_rows_without_a_trained_token_cannot_prove_anything():
    ids = np.arange(6, 16, dtype=np.int32)
    with pytest.raises(ExportError, match="no trained token among the 1 held-out rows"):
        read_reference(adapted(), [Example(ids, np.full_like(ids, IGNORE_INDEX))])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "cohere", "granite"])
def test_selecting_positions_in_a_padded_batch_changes_no_logit(family):
    model = tiny_model(family).eval()
    examples = rows(6)
    selected = torch.cat(list(trained_logits(model, examples)))
    with torch.no_grad():
        whole = [
            model(torch.from_numpy(e.input_ids.astype(np.int64))[None]).logits[0, predicting(e)]
            for e in examples
        ]
    torch.testing.assert_close(selected, torch.cat(whole), rtol=1e-4, atol=1e-5)


def test_arithmetic_is_float32_over_weights_that_stay_in_bfloat16():
    model = adapted(dtype=torch.bfloat16, target_modules=["q_proj", "lm_head"], use_dora=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(6, 26)[None]
    with torch.no_grad(), float32_arithmetic(model):
        logits = model(ids).logits
    assert logits.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        expected = model.float()(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_rows_are_thinned_to_the_memory_for_logits():
    assert [len(predicting(e)) for e in choose_examples(rows(4), most=20)] == [14, 6]
    long = Example(np.arange(1000, dtype=np.int32), np.arange(1000, dtype=np.int32))
    (thinned,) = choose_examples([long], most=5000)
    positions = predicting(thinned)
    assert len(positions) == POSITIONS_PER_ROW
    assert positions[0] == 0
    assert positions[-1] == 998


def test_the_report_tells_its_verdict_and_bound():
    report = MergeReport(1, 10, "rows", "bfloat16", 0.1, 0.001, 0.2, 1.0, 0.1, 3.0)
    value = report.as_dict()
    assert value["passed"] is True
    assert value["kl_share"] == pytest.approx(0.005)
    assert value["bound"] == {"kl_share": 0.01, "equal_greedy": 0.99}
