"""`newtune validate` finds paths that do not exist, as far as they can only be paths."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs import valid
from newtune.cli.main import app
from newtune.config.places import missing_places


def missing(folder: Path, **changes) -> list[str]:
    changes.setdefault("datasets", [{"path": "hub/rows", "type": "alpaca"}])
    return [text.partition(":")[0] for text in missing_places(valid(**changes), folder)]


@pytest.mark.parametrize("name", ["gpt2", "some/model", "hub/rows", "s3://a/b/c", "user/data.v2"])
def test_what_may_be_on_a_hub_is_left_alone(tmp_path, name):
    assert missing(tmp_path, base_model=name, datasets=[{"path": name, "type": "alpaca"}]) == []


@pytest.mark.parametrize(
    "key", ["base_model", "base_model_config", "tokenizer_config", "resume_from_checkpoint"]
)
@pytest.mark.parametrize("name", ["./model", "/no/model", "~/no", "a/b/c", "model.gguf"])
def test_models_that_are_not_there(tmp_path, key, name):
    assert missing(tmp_path, **{key: name}) == [key]


@pytest.mark.parametrize("path", ["rows.jsonl", "./rows", "/no/rows", "data/*.parquet", "../r.gz"])
def test_data_that_is_not_there(tmp_path, path):
    entry = {"path": path, "type": "alpaca"}
    found = missing(tmp_path, datasets=[entry], test_datasets=[entry])
    assert found == ["datasets.0.path", "test_datasets.0.path"]


def test_data_lies_beside_the_configuration_or_in_the_working_directory(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / f"{folder.name}.jsonl").touch()
    monkeypatch.chdir(here)
    paths = ["beside.jsonl", "here.jsonl", "*.jsonl", str(here / "here.jsonl"), "./here.jsonl"]
    assert missing(beside, datasets=[{"path": path, "type": "alpaca"} for path in paths]) == []


def test_validate_says_so_and_the_configuration_is_still_valid(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "base_model: some/model\ndatasets:\n  - path: rows.jsonl\n    type: alpaca\n"
        "learning_rate: 1e-4\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\n"
    )
    notice = "datasets.0.path: there is no `rows.jsonl`"
    result = CliRunner().invoke(app, ["validate", str(file)])
    assert result.exit_code == 0
    assert notice in " ".join(result.output.split())
    (tmp_path / "rows.jsonl").touch()
    assert notice not in " ".join(CliRunner().invoke(app, ["validate", str(file)]).output.split())
