"""Summary and card say what the files of the run say."""

import json
from dataclasses import replace

import pytest

from newtune.outputs.card import card_text, front_matter, published_name
from newtune.outputs.report import read_report, report_run
from newtune.outputs.verify import MergeReport
from newtune.run_dir import RunDir, write_json
from runs import TinyRun

METRICS = [
    {"step": 0, "eval_exact_match": 0.0, "eval_answers": 8},
    {"step": 2, "loss": 3.0, "tokens": 100, "trained_tokens": 40, "tokens_per_second": 50.0,
     "memory_bytes": 7},
    {"step": 4, "loss": 2.0, "tokens": 300, "trained_tokens": 120, "tokens_per_second": 25.0,
     "memory_bytes": 9},
    {"step": 4, "eval_loss": 2.5, "eval_exact_match": 0.75, "eval_answers": 8},
]  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    lines = "".join(f"{json.dumps(line)}\n" for line in METRICS)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 5, "lo')  # cut off by a crash
    return RunDir(tmp_path)


@pytest.fixture
def plan(tmp_path):
    plan = TinyRun(tmp_path, lora=True).plan()
    return replace(plan, model_facts=replace(plan.model_facts, parameters=1000))


def test_the_summary_adds_up(run_dir, plan):
    report = read_report(run_dir, plan)
    assert report.losses == ((2, 3.0), (4, 2.0))
    assert report.eval_losses == ((4, 2.5),)
    assert (report.exact_match_before, report.exact_match_after) == (0.0, 0.75)
    # 100 tokens at 50 per second and 200 at 25 take 10 seconds
    assert report.training_seconds == 10.0
    assert report.tokens_per_second == 30.0
    assert report.peak_memory_bytes == 9
    assert (report.steps, report.tokens, report.trained_tokens) == (4, 300, 120)
    assert report.merge is None


def test_the_summary_names_the_proof_of_the_merge(run_dir, plan):
    proof = MergeReport(6, 1200, "held-out rows", "float32", 0.01, 1e-6, 1e-3, 0.995, 0.4, 0.1)
    write_json(run_dir.merged / "verification.json", proof.as_dict())
    report = report_run(run_dir, plan)
    assert report.merge is not None
    assert report.merge["kl_share"] == pytest.approx(0.001)
    assert json.loads(run_dir.summary_file.read_text())["merge"]["passed"] is True
    card = (run_dir.merged / "README.md").read_text()
    assert "| equal greedy tokens | 99.50% |" in card
    assert "1,200 tokens (held-out rows)" in card
    assert 'library_name: "transformers"' in card
    assert "PeftModel" not in card
    assert (run_dir.root / "README.md").read_text().startswith("---\nbase_model:")


def test_an_unfinished_run_has_an_empty_summary(tmp_path, plan):
    report = read_report(RunDir(tmp_path / "nothing"), plan)
    assert (report.steps, report.losses, report.tokens_per_second) == (0, (), 0.0)


def test_the_card_holds_scores_data_and_versions(run_dir, plan):
    results = read_report(run_dir, plan).as_dict()
    counts = [
        {
            "name": "rows.jsonl",
            "rows_read": 1200,
            "dropped": [{"reason": "empty", "rows": 3}, {"reason": "too long", "rows": 4}],
            "rows_truncated": 5,
            "examples": 1193,
            "tokens": 60000,
            "trained_tokens": 20000,
        }
    ]
    text = card_text(plan, results, counts, {"python": "3.12.1", "versions": {"torch": "2.13.0"}})
    assert "| exact match before, 8 held-out rows | 0.0% |" in text
    assert "| exact match after | 75.0% |" in text
    assert "| rows.jsonl | 1,200 | 7 | 5 | 1,193 | 60,000 | 20,000 |" in text
    assert "torch 2.13.0, Python 3.12.1" in text


def test_the_front_matter_tells_adapter_from_model(plan):
    assert front_matter(replace(plan, adapter=None))["library_name"] == "transformers"
    assert front_matter(plan)["library_name"] == "peft"


def test_a_card_names_no_path_of_the_machine(tmp_path):
    (tmp_path / "base.gguf").touch()
    assert published_name(str(tmp_path / "base.gguf")) == "base.gguf"
    assert published_name("owner/model") == "owner/model"
