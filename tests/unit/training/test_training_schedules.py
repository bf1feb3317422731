import math

import pytest
import torch

from newtune.config.choices import REFUSED_SCHEDULES, SCHEDULES
from newtune.errors import ConfigError
from newtune.plan.parts import SchedulePlan
from newtune.training.run_state import load_schedule
from newtune.training.schedules import SHAPES, check_schedule, known_schedules, learning_rate_share


def schedule(name, *, warmup=0, quadratic=False, floor=None, held=None, **arguments):
    return SchedulePlan(name, warmup, quadratic, floor, held, arguments)


def shares(plan, total):
    share = learning_rate_share(plan, total)
    return [share(step) for step in range(total + 1)]


def test_warmup_is_linear_in_the_step_and_starts_at_zero():
    assert shares(schedule("constant_with_warmup", warmup=4), 6) == [0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_quadratic_warmup_is_its_square():
    plan = schedule("constant", warmup=4, quadratic=True)
    assert shares(plan, 5) == [0, 0.0625, 0.25, 0.5625, 1, 1]


def test_linear_falls_to_zero_after_the_warmup():
    assert shares(schedule("linear", warmup=2), 6) == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]


def test_cosine_by_hand():
    half = (1 + math.cos(math.pi / 4)) / 2
    assert shares(schedule("cosine"), 4) == pytest.approx([1, half, 0.5, 1 - half, 0])


def test_cosine_with_a_floor():
    assert shares(schedule("cosine", floor=0.2), 2) == pytest.approx([1, 0.6, 0.2])


def test_cosine_constant_ratio_reaches_the_floor_early_and_holds_it():
    plan = schedule("cosine", floor=0.1, held=0.5)
    assert shares(plan, 8) == pytest.approx(
        [1, 0.55 + 0.45 * math.cos(math.pi / 4), 0.55, 0.55 - 0.45 * math.cos(math.pi / 4)]
        + [0.1] * 5
    )


def test_restarts_return_to_the_peak():
    plan = schedule("cosine_with_restarts", num_cycles=2)
    assert shares(plan, 4) == pytest.approx([1, 0.5, 1, 0.5, 0])


def test_polynomial_by_hand():
    assert shares(schedule("polynomial", power=2.0), 4) == [1, 0.5625, 0.25, 0.0625, 0]


def test_inverse_square_root_by_hand():
    plan = schedule("inverse_sqrt", warmup=4)
    found = shares(plan, 16)
    assert found[4] == 1
    assert found[16] == pytest.approx(0.5)


def test_rex_by_hand():
    assert shares(schedule("rex"), 2) == pytest.approx([1, 0.5 / 0.75, 0])


def test_stable_then_decay():
    plan = schedule("warmup_stable_decay", decay_ratio=0.5)
    assert shares(plan, 4) == pytest.approx([1, 1, 1, 0.5, 0])


def test_one_cycle_rises_and_falls():
    found = shares(schedule("one_cycle", rise=0.5), 4)
    assert found == pytest.approx([0.04, 0.52, 1, 0.5, 0], abs=1e-5)


@pytest.mark.parametrize("name", [*SHAPES, "inverse_sqrt"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_every_schedule_stays_within_peak_and_zero(name, warmup):
    assert all(0 <= share <= 1 for share in shares(schedule(name, warmup=warmup), 10))


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial", "rex", "one_cycle"])
def test_every_floor_is_reached(name):
    assert shares(schedule(name, floor=0.3), 10)[-1] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (schedule("cosin"), "did you mean `cosine`"),
        (schedule("reduce_lr_on_plateau"), "follows the evaluation"),
        (schedule("polynomial", powr=2), "did you mean `power`"),
        (schedule("constant", floor=0.1), "has no floor"),
        (schedule("linear", held=0.5), "does not act"),
    ],
)
def test_what_cannot_act_is_refused(plan, message):
    with pytest.raises(ConfigError, match=message):
        check_schedule(plan)


def test_the_configuration_knows_what_runs_and_what_is_refused():
    assert set(SCHEDULES) - set(REFUSED_SCHEDULES) == known_schedules()


def test_a_schedule_goes_on_where_another_engine_had_more_groups():
    def made(groups):
        optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in range(groups)], lr=0.5)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    (first, saved), (second, loaded) = made(3), made(2)
    for _ in range(3):
        first.step()
        saved.step()
    second.param_groups[0]["lr"] = second.param_groups[1]["lr"] = first.param_groups[0]["lr"]
    load_schedule(loaded, saved.state_dict())
    assert (loaded.last_epoch, loaded.get_last_lr()) == (3, [0.125, 0.125])
    second.step()
    loaded.step()
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.1]
