"""A GGUF file is the model: transformers reads the same tokens and, within the dtype, logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
)

from newtune.cli.main import main
from newtune.errors import ExportError
from newtune.model.tokenizer import read_tokenizer
from newtune.outputs.export.gguf_file import export_gguf
from newtune.outputs.export.rope import rope_factors
from newtune.outputs.export.tokenizer import split_name, tokenizer_metadata
from tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
FAMILIES = {
    "llama": {"head_dim": 16},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 7},
    "phi3": {},
}
TIED = {"llama": True, "mistral": False, "qwen2": True, "qwen3": True, "phi3": False}
BOUNDS = {"f32": 1e-4, "f16": 1e-2, "bf16": 6e-2, "q8_0": 6e-2}
"""Of the logits' root mean square."""
TEXTS = [
    "The capital of France is Paris.",
    "  two  spaces, a tab\tand\n\na newline",
    "naïve café: 東京 😀",
    "<|im_start|>user\nHow many days?<|im_end|>\n",
]
IDS = torch.from_numpy(np.random.default_rng(0).integers(6, 384, (3, 24)))


def save(folder, family, **config):
    values = {**SIZES, **FAMILIES[family], **config}
    if family in ("qwen2", "phi3"):
        values.pop("head_dim", None)
    if family in TIED:
        values.setdefault("tie_word_embeddings", TIED[family])
    return save_tiny_checkpoint(folder, family, **values)


def read_model(file, config):
    return AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        **({} if config is None else {"config": config}),
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=GgufConfig(dequantize=True),
    )


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def distance(folder, file) -> float:
    original = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    expected = logits(original)
    # What the reader knows of the header is taken from there. It knows no width of heads and no
    # caps of logits: where those matter it gets the config, and the header is compared below.
    whole = original.config.model_type in ("llama", "mistral", "qwen2", "phi3")
    found = logits(read_model(file, None if whole else AutoConfig.from_pretrained(folder)))
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_back_with_the_same_logits(tmp_path, family):
    folder = save(tmp_path / "model", family)
    exported = export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="tiny")
    assert exported.largest_difference == 0
    assert distance(folder, exported.file) < BOUNDS["f32"]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_dtype_reads_back_within_its_bound(tmp_path, family, dtype):
    folder = save(tmp_path / "model", family)
    exported = export_gguf(folder, tmp_path / "x.gguf", dtype=dtype, name="tiny")
    assert exported.largest_difference > 0
    assert 1e-5 < distance(folder, exported.file) < BOUNDS[dtype]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(exported.file).tensors}
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_header_gives_the_config_back(tmp_path, family):
    folder = save(tmp_path / "model", family)
    exported = export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="tiny")
    written = AutoConfig.from_pretrained(tmp_path, gguf_file="x.gguf")
    config = AutoConfig.from_pretrained(folder)
    keys = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "vocab_size"),
        *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    )
    for key in keys:
        assert getattr(written, key) == pytest.approx(getattr(config, key)), key
    header = fields(exported.file)
    if family == "gemma2":
        assert header["gemma2.attn_logit_softcapping"] == 5.0
        assert header["gemma2.final_logit_softcapping"] == 3.0
    if family.startswith("gemma"):
        assert header[f"{exported.architecture}.attention.sliding_window"] == 8
    width = SIZES["head_dim"] if family not in ("llama", "qwen2", "phi3") else 16
    assert header[f"{exported.architecture}.attention.key_length"] == width
    assert header[f"{exported.architecture}.rope.dimension_count"] == width


def fields(file):
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def test_the_rows_of_q_and_k_go_by_rotating_pairs(tmp_path):
    """Hand arithmetic: in a head of 16, row 1 of GGUF is row 8 of transformers."""
    folder = save(tmp_path / "model", "llama")
    export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="tiny")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    model = AutoModelForCausalLM.from_pretrained(folder)
    attention = model.model.layers[0].self_attn
    order = [row + half for row in range(8) for half in (0, 8)]
    for name, weight in {"q": attention.q_proj.weight, "k": attention.k_proj.weight}.items():
        for head in range(len(weight) // 16):
            rows = [head * 16 + row for row in order]
            np.testing.assert_array_equal(
                tensors[f"blk.0.attn_{name}.weight"][head * 16 : head * 16 + 16],
                weight.detach().numpy()[rows],
            )


def test_gemmas_norms_hold_one_more(tmp_path):
    folder = save(tmp_path / "model", "gemma2")
    export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="tiny")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    norm = AutoModelForCausalLM.from_pretrained(folder).model.norm.weight.detach().numpy()
    np.testing.assert_array_equal(tensors["output_norm.weight"], norm + np.float32(1))


def byte_level(split=None):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if split is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = split
    return tokenizer


def sentencepiece(prefix):
    """SentencePiece BPE: `▁` for spaces, bytes for what is unknown; three ways to begin a text."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>"] if prefix is None else ["<unk>", "<s>", "</s>"]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    if prefix == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif prefix is None:
        backend.normalizer = spaces
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=names + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS[:1] * 4 + ["How many days are there in a week?"], trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bos, eos = ("<bos>", "<eos>") if prefix is None else ("<s>", "</s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="<unk>"
    )
    tokenizer.chat_template = tiny_tokenizer().chat_template
    return tokenizer


def splitting(name):
    from tokenizers import Regex
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


TOKENIZERS = {
    "gpt-2": ("llama", lambda: byte_level()),
    "llama-bpe": ("llama", lambda: byte_level(splitting("llama-bpe"))),
    "qwen2": ("qwen2", lambda: byte_level(splitting("qwen2"))),
    "tekken": ("mistral", lambda: byte_level(splitting("tekken"))),
    "llama's sentencepiece": ("llama", lambda: sentencepiece("metaspace")),
    "phi-3's sentencepiece": ("phi3", lambda: sentencepiece("prepend")),
    "gemma's sentencepiece": ("gemma2", lambda: sentencepiece(None)),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_of_texts_read_back(tmp_path, kind):
    family, make = TOKENIZERS[kind]
    tokenizer = make()
    folder = save(tmp_path / "model", family)
    tokenizer.save_pretrained(folder)
    exported = export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="tiny")
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in TEXTS:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert again(text, add_special_tokens=False)["input_ids"] == expected, text
    header = fields(exported.file)
    pieces = kind.endswith("sentencepiece")
    assert header["tokenizer.ggml.model"] == ("llama" if pieces else "gpt2")
    assert header.get("tokenizer.ggml.pre") == (None if pieces else kind)
    if pieces:
        assert header["tokenizer.ggml.add_space_prefix"] is (family != "gemma2")
        types = header["tokenizer.ggml.token_type"]
        assert types.count(6) == 256
        assert [place for place, kind in enumerate(types) if kind == 2] == [tokenizer.unk_token_id]
    assert len(header["tokenizer.ggml.tokens"]) == 384
    assert (again.bos_token, again.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    assert again.chat_template == tokenizer.chat_template


def test_the_way_of_smollm_to_cut_digits_has_a_name(tmp_path):
    """transformers does not read that name back (it cuts as GPT-2 does): the name is the proof."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    content = json.loads(byte_level(split).backend_tokenizer.to_str())
    assert split_name(content) == "smollm"


def test_the_header_says_what_begins_ends_and_fills(tmp_path):
    tokenizer = byte_level()
    header = dict(tokenizer_metadata(tokenizer, 390))
    assert header["ggml.bos_token_id"] == 1
    assert header["ggml.eos_token_id"] == 2
    assert header["ggml.padding_token_id"] == 3
    assert header["ggml.eot_token_id"] == 5  # the template ends a turn with <|im_end|>
    assert header["ggml.add_bos_token"] is False
    assert header["ggml.tokens"][384:] == [f"[PAD{index}]" for index in range(384, 390)]
    assert header["ggml.token_type"][:6] == [3] * 6
    assert set(header["ggml.token_type"][384:]) == {5}
    assert header["chat_template"] == tokenizer.chat_template


def test_a_tokenizer_that_cuts_in_an_unknown_way_is_refused():
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    with pytest.raises(ExportError, match="cuts text in a way"):
        dict(tokenizer_metadata(byte_level(split), 384))


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(ExportError, match="do not belong together"):
        dict(tokenizer_metadata(byte_level(), 300))


def test_llama3s_scaling_is_a_tensor_of_factors():
    """Hand arithmetic: fast angles keep their frequency, slow ones are divided by the factor."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    factors = rope_factors(tiny_model("llama", **SIZES, rope_parameters=rope).config)
    values = factors["rope_freqs.weight"]
    assert values.shape == (16,)
    assert values[0] == pytest.approx(1.0)  # a wave of 2π positions, far below 64 / 4
    assert values[-1] == pytest.approx(8.0)  # a wave of 35,000 positions, far beyond 64 / 1


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
            {"type": "yarn", "factor": 2.0, "original_context_length": 256},
        ),
    ],
)
def test_scalings_that_gguf_names_are_in_the_header(tmp_path, rope, expected):
    rope = {"rope_theta": 10000.0, **rope}
    folder = save(tmp_path / "model", "qwen3", rope_parameters=rope)
    header = fields(export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="t").file)
    assert {key: header[f"qwen3.rope.scaling.{key}"] for key in expected} == expected


def test_phi3s_long_factors_are_tensors(tmp_path):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "long_factor": [4.0] * 8,
        "short_factor": [1.0] * 8,
        "original_max_position_embeddings": 128,
    }
    lengths = {"original_max_position_embeddings": 128}
    folder = save(tmp_path / "model", "phi3", rope_parameters=rope, **lengths)
    exported = export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="t")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(exported.file).tensors}
    assert tensors["rope_factors_long.weight"].tolist() == [4.0] * 8
    assert tensors["rope_factors_short.weight"].tolist() == [1.0] * 8
    header = fields(exported.file)
    assert header["phi3.rope.scaling.original_context_length"] == 128
    expected = np.sqrt(1 + np.log(512 / 128) / np.log(128))
    assert header["phi3.rope.scaling.attn_factor"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (
            "mixtral",
            {},
            "type `mixtral` cannot be written as GGUF; these can: llama, mistral, qwen2",
        ),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "every 2th layer"),
        ("gemma2", {"query_pre_attn_scalar": 5}, "query_pre_attn_scalar"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "`dynamic`",
        ),
    ],
)
def test_what_gguf_has_no_word_for_is_refused(tmp_path, family, config, message):
    folder = save_tiny_checkpoint(tmp_path / "model", family, **config)
    with pytest.raises(ExportError, match=message):
        export_gguf(folder, tmp_path / "x.gguf", dtype="f32", name="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_values_that_float16_cannot_hold_are_refused(tmp_path):
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match="too large for float16: take bf16"):
        export_gguf(tmp_path / "model", tmp_path / "x.gguf", dtype="f16", name="tiny")
    assert not (tmp_path / "x.gguf").exists()


REAL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="`make quickstart` fetches the model")
def test_a_file_made_by_llama_cpp_comes_out_as_it_went_in(tmp_path):
    """Read by transformers, written by newtune: every tensor and every key of the original."""
    model = AutoModelForCausalLM.from_pretrained(
        REAL.parent,
        gguf_file=REAL.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(tmp_path / "model")
    read_tokenizer(str(REAL)).save_pretrained(tmp_path / "model")
    exported = export_gguf(tmp_path / "model", tmp_path / "x.gguf", dtype="f32", name="x")
    original, written = GGUFReader(REAL), GGUFReader(exported.file)
    found = {tensor.name: tensor.data for tensor in written.tensors}
    assert found.keys() == {tensor.name for tensor in original.tensors}
    for tensor in original.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found[tensor.name], values, err_msg=tensor.name)
    header, expected = fields(exported.file), fields(REAL)
    said = [key for key in expected if key.startswith(("llama.", "tokenizer."))]
    other = {key for key in said if header.get(key) != expected[key]}
    assert other == {"tokenizer.ggml.add_space_prefix"}  # nothing that byte-level BPE reads


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["newtune", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_writes_refuses_and_replaces(tmp_path, monkeypatch, capsys):
    folder = save(tmp_path / "model", "llama")
    assert call(monkeypatch, "export", folder, "--format", "gguf", "--dtype", "q8_0") == 0
    assert (tmp_path / "model-q8_0.gguf").is_file()
    assert "read back" in capsys.readouterr().out
    assert call(monkeypatch, "export", folder, "--dtype", "q8_0") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(monkeypatch, "export", folder, "--dtype", "q8_0", "--overwrite") == 0
    assert call(monkeypatch, "export", folder, "--to", tmp_path / "own.gguf") == 0
    assert (tmp_path / "own.gguf").is_file()
    assert call(monkeypatch, "export", folder, "--dtype", "q4_k") == 2
    assert "f32, f16, bf16, q8_0" in capsys.readouterr().err
    assert call(monkeypatch, "export", tmp_path) == 2
    assert "holds neither a run" in capsys.readouterr().err
