"""`newtune preprocess` and `newtune data`, as a user sees them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from newtune.cli.main import app
from tiny import save_tiny_checkpoint


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(6)]
    rows += [{"instruction": "x" * 900, "output": "long"}, {"instruction": "x", "output": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny_checkpoint(tmp_path / "base")
    values = {
        "base_model": str(tmp_path / "base"),
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
        "sequence_len": 300,
        "sample_packing": True,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    return tmp_path / "run.yaml"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_preprocess_counts_and_the_second_time_uses_the_cache(config):
    first = run("preprocess", config)
    file = config.parent / "rows.jsonl"
    assert f"dropped 1: longer than 300 tokens (first: {file}, line 7)" in first
    assert f"dropped 1: `output` is empty (first: {file}, line 8)" in first
    assert "written to last_run_prepared" in first
    assert "as cached in last_run_prepared" in run("preprocess", config)
    assert "written to" in run("preprocess", config, "--force")
    assert "written to" in run("preprocess", config, "--sequence_len", "310")


def fails(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return result.output


def test_data_shows_packs_and_counts(config):
    shown = run("data", config, "--rows", 1)
    assert "pack 1" in shown
    assert "pack 2" not in shown
    assert "⟦It is 4.</s>⟧" in run("data", config, "--rows", 9)
    assert "rows.jsonl     8        2" in shown


@pytest.mark.parametrize(
    ("overrides", "heading"),
    [
        (["--sample_packing", "false"], "example 1: "),
        (["--sample_packing", "false", "--batch_flattening", "true"], "example 1: "),
        (["--pad_to_sequence_len", "true"], "pack 1: "),
    ],
)
def test_every_example_is_shown_once_however_batches_are_laid_out(config, overrides, heading):
    words = ["data", config, "--micro_batch_size", 2, "--rows", 9]
    shown = run(*words, *overrides)
    assert heading in shown
    assert [shown.count(f"⟦It is {n}.</s>⟧") for n in range(6)] == [1] * 6
    assert ("positions of padding" in shown) == ("--pad_to_sequence_len" in overrides)


def test_a_micro_batch_with_its_tensors(config):
    shown = run("data", config, "--batch", 2, "--sample_packing", "false")
    assert "Micro-batch 2 of 6, step 2 of 6: tensors of 1 × " in shown
    assert "attention is cut at 0, " in shown
    assert "There is no micro-batch 99: the run has" in fails("data", config, "--batch", 99)


def test_a_row_whatever_happened_to_it(config):
    kept = run("data", config, "--row", 5)
    assert '"instruction": "Say 4"' in kept
    assert "⟦It is 4.</s>⟧" in kept
    assert "trained: example " in kept
    assert " of the first epoch" in kept
    long = run("data", config, "--row", 7, "--limit", 3)
    assert "dropped: longer than 300 tokens" in long
    assert "more tokens (`--limit 0` shows all)" in long
    assert "dropped: `output` is empty" in run("data", config, "--row", 8)
    assert "held out: example 1 of " in "".join(
        run("data", config, "--row", number, "--val_set_size", 3) for number in range(1, 7)
    )
    assert "There is no row 99" in fails("data", config, "--row", 99)


def test_a_row_that_stops_the_preparation_is_shown_before_the_error(config):
    with (config.parent / "rows.jsonl").open("a") as file:
        file.write('{"instruction": "no answer here"}\n')
    shown = fails("data", config, "--row", 9)
    assert shown.index('"no answer here"') < shown.index("line 9: no field `output`")


def test_which_of_several_datasets(config):
    two = ["--datasets.1.path", "rows.jsonl", "--datasets.1.type", "alpaca"]
    asked = fails("data", config, *two, "--row", 1)
    assert "Give `--dataset` one of 1 (rows.jsonl), 2 (rows.jsonl)" in asked
    assert "trained: " in run("data", config, *two, "--row", 1, "--dataset", 2)


def test_dropped_rows_are_listed_up_to_a_limit(config):
    with (config.parent / "rows.jsonl").open("a") as file:
        file.write('{"instruction": "x", "output": null}\n' * 4)
    shown = run("data", config, "--dropped", "--limit", 2)
    assert "6 of 12 rows were dropped" in shown
    assert "rows.jsonl, line 7" in shown
    assert "... and 3 more" in shown
    assert "... and" not in run("data", config, "--dropped")


def test_held_out_data(config):
    shown = run("data", config, "--eval", "--val_set_size", 2)
    assert shown.count("⟦It is") == 2
    assert "No rows are held out" in fails("data", config, "--eval")


def test_json_for_other_programs(config):
    read = json.loads(run("data", config, "--json", "--batch", 1).split("\n", 1)[1])
    (batch,) = read["batches"]
    example = batch["sequences"][0][0]
    tokens = example["tokens"]
    assert batch["cu_seq_lens"][1] == len(tokens)
    assert [token["position"] for token in tokens] == list(range(len(tokens)))
    text = "".join(token["text"] for token in tokens if token["trained"])
    assert text == f"It is {example['row'] - 1}.</s>"
    assert all((token["label"] == token["id"]) == token["trained"] for token in tokens)


def test_a_config_with_nothing_to_train_says_so_at_once(config):
    (config.parent / "rows.jsonl").write_text('{"instruction": "x", "output": null}\n')
    for words in ([], ["--dropped"], ["--html", "page.html"], ["--json"]):
        assert "no trained token in 1 rows" in fails("data", config, *words)
    assert not (config.parent / "page.html").exists()


def test_a_page_that_cannot_be_written_is_refused_before_the_data_is_prepared(config):
    (config.parent / "file").write_text("")
    assert "is a folder; name a file in it" in fails("data", config, "--html", config.parent)
    assert "cannot be made" in fails("data", config, "--html", config.parent / "file" / "x.html")
    assert not (config.parent / "last_run_prepared").exists()


def test_only_one_view_at_a_time(config):
    assert "only one of --row and --html" in fails("data", config, "--row", 1, "--html", "x.html")


@pytest.mark.parametrize("words", [[], ["--row", "9"], ["--batch", "1"], ["--json"]])
def test_control_characters_of_a_row_do_not_reach_the_terminal(config, words):
    row = {"instruction": "\x1b[2J\x07\u202e", "output": "\x1b]0;title\x07 \x9b31m"}
    (config.parent / "rows.jsonl").write_text((json.dumps(row) + "\n") * 9)
    shown = run("data", config, *words)
    assert "␛[2J" in shown or "\\u001b" in shown
    assert not set(shown) & set("\x1b\x07\u202e\x9b")
