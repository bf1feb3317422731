import io

from rich.console import Console

from newtune.run_dir import read_json_lines
from newtune.training.metrics import PACE_STEPS, Meter, TokenCounts, perplexity
from newtune.training.progress import ProgressDisplay, clock, evaluation_line
from runs import TinyRun, packed


def test_a_line_holds_what_a_run_is_judged_by(tmp_path):
    run = TinyRun(tmp_path, steps=2)
    run.trainer().train()
    line = run.metrics()[0]
    assert line.keys() == {
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "trained_tokens",
        "tokens_per_second",
        "memory_bytes",
        "time",
    }
    assert line["tokens_per_second"] > 0
    assert line["memory_bytes"] > 100_000_000


def test_a_new_run_starts_a_new_file(tmp_path):
    run = TinyRun(tmp_path, steps=1)
    run.trainer().train()
    run.trainer().train()
    assert len(run.losses()) == len([line for line in run.metrics() if "loss" in line]) == 1


def test_a_line_that_a_crash_cut_off_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_time_for_evaluating_and_saving_is_left_out(monkeypatch):
    now = iter([0.0, 2.0, 100.0, 103.0])
    monkeypatch.setattr("newtune.training.metrics.time.monotonic", lambda: next(now))
    meter = Meter.new()  # 0
    meter.add_step(6.0, TokenCounts(10, 3))
    meter.add_time()  # 2
    meter.restart_clock()  # 100
    meter.add_step(2.0, TokenCounts(10, 1))
    meter.add_time()  # 103
    report = meter.report()
    assert report["tokens_per_second"] == 20 / 5
    assert report["loss"] == 8 / 4


def test_the_pace_is_that_of_the_last_steps_alone(monkeypatch):
    now = iter([0.0, 50.0, 52.0, 100.0, 103.0])
    monkeypatch.setattr("newtune.training.metrics.time.monotonic", lambda: next(now))
    meter = Meter.new()  # 0
    assert meter.tokens_per_second() == meter.seconds_per_step() == 0
    meter.restart_clock()  # 50: a long evaluation before the first step
    meter.add_step(1.0, TokenCounts(10, 3))
    meter.add_time()  # 52
    meter.restart_clock()  # 100
    meter.add_step(1.0, TokenCounts(20, 3))
    meter.add_time()  # 103
    assert meter.tokens_per_second() == 30 / 5
    assert meter.seconds_per_step() == 5 / 2
    monkeypatch.setattr("newtune.training.metrics.time.monotonic", lambda: 103.0)
    for _ in range(PACE_STEPS):
        meter.add_time()
    assert meter.seconds_per_step() == 0


def test_the_remaining_time_counts_the_evaluations_to_come(monkeypatch):
    monkeypatch.setattr(Meter, "seconds_per_step", lambda self: 2.0)
    console = Console(file=io.StringIO())
    kinds = {0: "answers", 4: "loss", 8: "loss", 10: "answers"}
    display = ProgressDisplay(Meter.new(), console, kinds)
    assert display.remaining_seconds(0, 10) == 20
    display.seconds_of = {"answers": 100.0, "loss": 7.0}
    assert display.remaining_seconds(0, 10) == 20 + 7 + 7 + 100
    assert display.remaining_seconds(4, 10) == 12 + 7 + 100
    assert display.remaining_seconds(10, 10) == 0


def test_a_report_is_one_line_however_narrow_the_place_is(tmp_path):
    run = TinyRun(tmp_path, steps=2, evaluation_batches=packed(1))
    trainer = run.trainer()
    output = io.StringIO()
    trainer.display.console = Console(file=output, width=40)
    trainer.train()
    assert len(output.getvalue().splitlines()) == 2


def test_an_evaluation_is_timed_by_its_kind(tmp_path):
    run = TinyRun(
        tmp_path, steps=2, evaluation_batches=packed(1), evaluation={"at_steps": frozenset({1})}
    )
    trainer = run.trainer()
    trainer.train()
    assert trainer.display.evaluations == {1: "loss"}
    assert trainer.display.seconds_of["loss"] > 0


def test_perplexity_of_a_hopeless_loss_is_infinite():
    assert perplexity(1000.0) == float("inf")
    assert perplexity(0.0) == 1.0


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    run = TinyRun(
        tmp_path,
        steps=2,
        evaluation_batches=packed(1),
        evaluation={"at_steps": frozenset({2})},
    )
    run.trainer().train()
    lines = run.output.getvalue().splitlines()
    assert lines[0].startswith("step 1/2 · epoch 0.50 · lr 1.00e-02 · loss 5.67")
    assert "tok/s" in lines[0]
    assert "left" in lines[0]
    assert "GB" in lines[0]
    assert lines[2].startswith("evaluation after step 2 · loss")


def test_a_bar_in_a_terminal(tmp_path):
    run = TinyRun(tmp_path, steps=2)
    output = io.StringIO()
    trainer = run.trainer()
    trainer.display.console = Console(file=output, force_terminal=True, width=120)
    trainer.train()
    assert "2/2" in output.getvalue()
    assert "tok/s" in output.getvalue()
    assert trainer.display.bar is None


def test_the_bar_is_given_back_after_a_failure():
    display = ProgressDisplay(Meter.new(), Console(file=io.StringIO()))
    display.close()
    assert display.bar is None


def test_a_clock_is_readable():
    assert [clock(s) for s in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]


def test_an_evaluation_in_one_line():
    line = evaluation_line(7, {"eval_loss": 1.0, "eval_perplexity": 2.71, "eval_exact_match": 0.5})
    assert line == "evaluation after step 7 · loss 1.0000 · perplexity 2.71 · exact match 50.0%"
