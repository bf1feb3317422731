"""merge, evaluate, chat and generate, from the command line, on one tiny trained run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from newtune.cli.main import app
from tiny import save_tiny_checkpoint

ANSWERS = ("red", "blue", "green")


def newtune(*words: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=text)


def write_rows(path: Path, count: int) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"colour {number % 3}?"},
                {"role": "assistant", "content": ANSWERS[number % 3]},
            ]
        }
        for number in range(count)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny adapter once; return the configuration's path."""
    folder = tmp_path_factory.mktemp("results")
    save_tiny_checkpoint(folder / "base")
    write_rows(folder / "train.jsonl", 12)
    write_rows(folder / "heldout.jsonl", 6)
    path = folder / "run.yaml"
    path.write_text(f"""
base_model: {folder}/base
datasets: [{{path: {folder}/train.jsonl, type: chat_template}}]
test_datasets: [{{path: {folder}/heldout.jsonl, type: chat_template}}]
dataset_prepared_path: {folder}/prepared
sequence_len: 128
sample_packing: true
adapter: lora
lora_r: 8
lora_target_linear: true
bf16: false
micro_batch_size: 1
gradient_accumulation_steps: 1
num_epochs: 10
learning_rate: 2e-2
eval_generate: true
eval_strategy: "no"
save_strategy: "no"
eval_max_new_tokens: 12
output_dir: {folder}/run
""")
    done = newtune("train", path)
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture(scope="module")
def merged(config: Path) -> Path:
    done = newtune("merge", config)
    assert done.exit_code == 0, done.output
    assert "the merged model is what was trained" in done.output
    return config.parent / "run" / "merged"


def test_merge_leaves_its_proof_and_the_summary_names_it(config: Path, merged: Path) -> None:
    proof = json.loads((merged / "verification.json").read_text())
    assert proof["passed"] is True
    assert proof["source"] == "held-out rows"
    assert proof["rows"] == 6
    summary = json.loads((merged.parent / "summary.json").read_text())
    assert summary["merge"]["kl_share"] == proof["kl_share"]


def test_merging_again_needs_overwrite(config: Path, merged: Path) -> None:
    again = newtune("merge", config)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert newtune("merge", config, "--overwrite", "--dtype", "float16").exit_code in (0, 2)


@pytest.mark.parametrize("which", ["merged", "adapter", "base"])
def test_every_model_of_a_run_is_evaluated(config: Path, merged: Path, which: str) -> None:
    result = newtune("evaluate", config, "--which", which)
    assert result.exit_code == 0, result.output
    assert f"{which}:" in result.output
    assert "exact match" in result.output


def test_the_trained_model_is_better_than_the_base(config: Path, merged: Path) -> None:
    losses = [_loss(newtune("evaluate", config, "--which", w)) for w in ("merged", "adapter")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)
    assert losses[0] < 0.7 * _loss(newtune("evaluate", config, "--which", "base"))


def _loss(result: Result) -> float:
    line = next(line for line in result.output.splitlines() if line.startswith("loss"))
    return float(line.split()[1])


def test_chat_answers_the_lines_of_a_pipe(config: Path, merged: Path) -> None:
    talk = "colour 0?\n/reset\ncolour 1?\n/exit\ncolour 2?\n"
    result = newtune("chat", config, "--max-new-tokens", "6", text=talk)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) >= 2
    by_folder = newtune("chat", merged.parent, "--max-new-tokens", "6", text=talk)
    assert by_folder.stdout == result.stdout


def test_the_system_message_of_the_training_comes_first_unless_another_is_given(
    config: Path, merged: Path
) -> None:
    """With it an answer is the one to the whole conversation as it was trained."""
    counts = merged.parent / "data.json"
    saved = counts.read_text()
    system = {"role": "system", "content": "Say no colour. " * 5}
    user = {"role": "user", "content": "colour 0?"}
    file = config.parent / "with_system.jsonl"
    file.write_text("".join(f"{json.dumps({'messages': m})}\n" for m in ([system, user], [user])))
    words = ("--max-new-tokens", "6")
    with_it, without = newtune("generate", config, "--input", file, *words).stdout.splitlines()
    assert with_it != without
    try:
        told = [{**entry, "system": system["content"]} for entry in json.loads(saved)]
        counts.write_text(json.dumps(told))
        asked = ("generate", config, "--prompt", "colour 0?", *words)
        assert newtune(*asked).stdout.splitlines() == [with_it]
        assert newtune(*asked, "--system", "").stdout.splitlines() == [without]
        talk = newtune("chat", config, *words, text="colour 0?\n")
        assert talk.stdout.splitlines() == [with_it]
        talk = newtune("chat", config, *words, "--system", "", text="colour 0?\n")
        assert talk.stdout.splitlines() == [without]
    finally:
        counts.write_text(saved)


def test_generate_answers_prompts_and_files_alike(
    config: Path, merged: Path, tmp_path: Path
) -> None:
    words = ("--max_new_tokens", "6")
    printed = newtune("generate", config, "--prompt", "colour 0?", "--prompt", "colour 1?", *words)
    assert printed.exit_code == 0, printed.output
    asked, answered = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text(
        '{"prompt": "colour 0?"}\n'
        '{"messages": [{"role": "user", "content": "colour 1?"},'
        ' {"role": "assistant", "content": "blue"}]}\n'
    )
    result = newtune("generate", merged, "--input", asked, "--output", answered, *words)
    assert result.exit_code == 0, result.output
    answers = [json.loads(line)["answer"] for line in answered.read_text().splitlines()]
    assert answers == [line.strip() for line in printed.stdout.splitlines()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "in.jsonl:2: not JSON"),
        ('{"question": "a"}\n', "row 1 holds neither `prompt` nor `messages`; it has: question"),
    ],
)
def test_generate_names_what_is_wrong_with_a_file(
    config: Path, tmp_path: Path, content: str, said: str
) -> None:
    asked = tmp_path / "in.jsonl"
    asked.write_text(content)
    result = newtune("generate", config, "--input", asked)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_what_is_missing_is_said_before_data_is_prepared(config: Path, tmp_path: Path) -> None:
    places = ("--output_dir", tmp_path / "other", "--dataset_prepared_path", tmp_path / "cache")
    for command in (("merge",), ("evaluate",), ("evaluate", "--which", "merged")):
        assert newtune(command[0], config, *command[1:], *places).exit_code == 2
    assert not (tmp_path / "cache").exists()


def test_a_run_that_was_not_trained_says_so(config: Path, tmp_path: Path) -> None:
    for command in ("merge", "evaluate", "chat"):
        result = newtune(command, config, "--output_dir", tmp_path / "other", text="")
        assert result.exit_code == 2, result.output
        assert "newtune train" in " ".join(result.output.split()) or "Train first" in result.output
