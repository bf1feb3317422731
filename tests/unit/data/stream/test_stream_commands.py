"""`newtune data` and `newtune preprocess` of a stream, as a user sees them."""

import json

import pytest
from typer.testing import CliRunner

from newtune.cli.main import app
from streams import texts, write_texts
from tiny import save_tiny_checkpoint


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    save_tiny_checkpoint(folder / "base")
    talks = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f"You said {text}"}]
        for text in ["", *texts(11, seed=3)]
    ]
    talks[4] = []
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in talks)
    (folder / "talks.jsonl").write_text(lines)
    write_texts(folder / "text.jsonl", texts(30))
    values = {
        "base_model": str(folder / "base"),
        "pretraining_dataset": [{"path": str(folder / "text.jsonl")}],
        "datasets": [
            {"path": str(folder / "talks.jsonl"), "type": "chat_template", "skip": 2, "weight": 2}
        ],
        "chat_template": "chatml",
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": 256,
        "sample_packing": True,
        "streaming_multipack_buffer_size": 12,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 9,
        "learning_rate": 1e-4,
        "output_dir": str(folder / "out"),
    }
    (folder / "run.yaml").write_text(json.dumps(values))
    return folder / "run.yaml"


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.output


def test_packs_are_shown_as_the_trainer_gets_them_with_turns_and_counts(config):
    shown = run("data", config, "--rows", 3)
    assert "pack 3" in shown
    assert "pack 4" not in shown
    assert "text.jsonl, row " in shown
    assert "assistant │ <|im_start|>assistant⏎" in shown
    assert "⟦You said" in shown
    assert "a stream, counted as far as it was read" in shown
    assert "dropped 1: `messages` is empty" in shown


def test_any_micro_batch_can_be_read(config):
    shown = run("data", config, "--batch", 7)
    assert "Micro-batch 7 of 18, step 4 of 9" in shown
    assert "attention is cut at 0, " in shown
    said = json.loads(run("data", config, "--json", "--batches", 2))
    assert [batch["batch"] for batch in said["batches"]] == [1, 2]
    assert [entry["rows_read"] > 0 for entry in said["datasets"]] == [True, True]
    first = said["batches"][0]["sequences"][0][0]
    assert first["example"] is None
    assert first["dataset"] in (1, 2)
    assert set(said["choices"]) >= {"pretraining_dataset.0", "datasets.0"}


def test_a_page_is_written(config, tmp_path):
    run("data", config, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a stream" in page
    assert "talks.jsonl, row " in page
    assert "data-example" not in page


def test_a_row_is_found_by_its_number(config):
    shown = run("data", config, "--row", 3, "--dataset", 2)
    assert "trained when the stream comes to it" in shown
    shown = run("data", config, "--row", 1, "--dataset", 2)
    assert "not read: `split`, `shards` or `skip` leaves it out" in shown
    assert "dropped: `messages` is empty" in run("data", config, "--row", 5, "--dataset", 2)
    assert "data.json" in run("data", config, "--dropped", code=2)


def test_there_is_nothing_to_prepare_but_held_out_data(config):
    said = run("preprocess", config)
    assert said.strip() == "The training data is streamed: it needs no preparation."
    held_out = f"[{{path: {config.parent}/text.jsonl, type: completion}}]"
    said = run("preprocess", config, "--test_datasets", held_out)
    assert "0 examples to train, 30 held out" in said
    assert "Evaluation batch 2 of " in run(
        "data", config, "--test_datasets", held_out, "--eval", "--batch", 2
    )
