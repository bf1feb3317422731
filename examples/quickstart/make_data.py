"""Write train.jsonl and heldout.jsonl: plain-language schedules and their cron expressions.

    python examples/quickstart/make_data.py

A row is drawn in four steps: a kind of schedule, its values (with the one cron expression they
mean), a wording of it and a sentence around that. The two files share no wording, no sentence
frame and no job (wordings.toml); days, times and numbers are spelled the same ways in both.

One answer per meaning: days of the week count from Sunday = 0, lists ascend, a list stays a list
(`1,2,3`), "from ... to ..." is a range (`1-3`) and contains both ends, an interval is `*/n`.
Midnight by that name appears only in daily schedules, as "Monday at midnight" has two readings.
"""

import json
import logging
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spelling import (
    DAYS,
    MONTHS,
    joined,
    past_the_hour,
    spell_24,
    spell_am_pm,
    spell_date,
    spell_figures,
    spell_nth,
    spell_number,
    spell_tight_am_pm,
    spell_time,
    suffixed,
)

FOLDER = Path(__file__).parent
SEED = 20
ROWS = {"train": 800, "heldout": 300}

Slots = Mapping[str, str]
Draw = Callable[[random.Random], "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """One cron expression and the spelled values that fill a wording's slots."""

    cron: str
    slots: Slots


# Values ----------------------------------------------------------------------------------------


def draw_time(rng: random.Random) -> tuple[int, int]:
    """Return hour and minute, the day's hours only; full and half ones are the most frequent."""
    return rng.randrange(6, 23), rng.choice((0, 0, 0, 30, 30, 15, 45, 5 * rng.randrange(12)))


def draw_clock(rng: random.Random) -> tuple[str, Slots]:
    """Return the cron fields `minute hour` and the time spelled."""
    hour, minute = draw_time(rng)
    return f"{minute} {hour}", {"time": spell_time(rng, hour, minute)}


def draw_day_group(rng: random.Random) -> tuple[str, str]:
    """Return the day-of-week field and the plural that means it."""
    if rng.random() < 0.35:
        return rng.choice((("1-5", "weekdays"), ("0,6", "weekends")))
    day = rng.randrange(7)
    return str(day), f"{DAYS[day]}s"


def draw_hour_span(rng: random.Random) -> tuple[int, int]:
    """Return first and last hour of a stretch of the day, at least three hours apart."""
    first = rng.randrange(5, 15)
    return first, rng.randrange(first + 3, 23)


def spell_hours(rng: random.Random, first: int, last: int) -> Slots:
    """Return the two full hours, spelled alike."""
    spelling = rng.choice((spell_24, spell_am_pm, spell_figures))
    return {"from": spelling(first, 0), "to": spelling(last, 0)}


# Schedules: what each kind means in cron ---------------------------------------------------------


def daily(rng: random.Random) -> Schedule:
    """Every day at one time; the only kind that says "midnight"."""
    if rng.random() < 0.06:
        return Schedule("0 0 * * *", {"time": "midnight"})
    clock, slots = draw_clock(rng)
    return Schedule(f"{clock} * * *", slots)


def weekly(rng: random.Random) -> Schedule:
    """One day of the week."""
    clock, slots = draw_clock(rng)
    day = rng.randrange(7)
    return Schedule(f"{clock} * * {day}", {**slots, "day": DAYS[day], "days": f"{DAYS[day]}s"})


def day_list(rng: random.Random) -> Schedule:
    """Two or three days of the week."""
    clock, slots = draw_clock(rng)
    days = sorted(rng.sample(range(7), rng.choice((2, 2, 3))))
    names = [DAYS[day] for day in days]
    plurals = [f"{name}s" for name in names]
    field = ",".join(map(str, days))
    return Schedule(
        f"{clock} * * {field}", {**slots, "day": joined(names), "days": joined(plurals)}
    )


def workdays(rng: random.Random) -> Schedule:
    """Monday to Friday."""
    clock, slots = draw_clock(rng)
    return Schedule(f"{clock} * * 1-5", slots)


def weekend(rng: random.Random) -> Schedule:
    """Saturday and Sunday."""
    clock, slots = draw_clock(rng)
    return Schedule(f"{clock} * * 0,6", slots)


def day_range(rng: random.Random) -> Schedule:
    """From one day of the week to a later one."""
    clock, slots = draw_clock(rng)
    first, last = rng.choice([(a, b) for a in range(7) for b in range(a + 2, 7)])
    return Schedule(
        f"{clock} * * {first}-{last}", {**slots, "first": DAYS[first], "last": DAYS[last]}
    )


def monthly(rng: random.Random) -> Schedule:
    """One day of every month."""
    clock, slots = draw_clock(rng)
    day = rng.randint(1, 28)
    return Schedule(f"{clock} {day} * *", {**slots, "nth": spell_nth(rng, day), "number": str(day)})


def twice_monthly(rng: random.Random) -> Schedule:
    """Two days of every month."""
    clock, slots = draw_clock(rng)
    first, second = sorted(rng.sample(range(1, 29), 2))
    days = {
        "nth": suffixed(first),
        "nth2": suffixed(second),
        "number": str(first),
        "number2": str(second),
    }
    return Schedule(f"{clock} {first},{second} * *", {**slots, **days})


def yearly(rng: random.Random) -> Schedule:
    """One date of every year."""
    clock, slots = draw_clock(rng)
    day, month = rng.randint(1, 28), rng.randint(1, 12)
    return Schedule(
        f"{clock} {day} {month} *", {**slots, "date": spell_date(rng, day, MONTHS[month - 1])}
    )


def month_daily(rng: random.Random) -> Schedule:
    """Every day of one month."""
    clock, slots = draw_clock(rng)
    month = rng.randint(1, 12)
    return Schedule(f"{clock} * {month} *", {**slots, "month": MONTHS[month - 1]})


def month_range(rng: random.Random) -> Schedule:
    """Every day from one month to a later one."""
    clock, slots = draw_clock(rng)
    first, last = sorted(rng.sample(range(1, 13), 2))
    names = {"first_month": MONTHS[first - 1], "last_month": MONTHS[last - 1]}
    return Schedule(f"{clock} * {first}-{last} *", {**slots, **names})


def month_weekday(rng: random.Random) -> Schedule:
    """One day of the week, in one month."""
    clock, slots = draw_clock(rng)
    day, month = rng.randrange(7), rng.randint(1, 12)
    names = {"day": DAYS[day], "days": f"{DAYS[day]}s", "month": MONTHS[month - 1]}
    return Schedule(f"{clock} * {month} {day}", {**slots, **names})


def twice_daily(rng: random.Random) -> Schedule:
    """Two hours of the day, at the same minute and spelled alike."""
    first, second = sorted(rng.sample([hour for hour in range(1, 24) if hour != 12], 2))
    minute = rng.choice((0, 0, 30, 15, 45, 10))
    spelling = rng.choice((spell_24, spell_am_pm, spell_tight_am_pm))
    times = {"time": spelling(first, minute), "time2": spelling(second, minute)}
    return Schedule(f"{minute} {first},{second} * * *", times)


MINUTE_STEPS = (2, 3, 4, 5, 6, 10, 12, 15, 20, 30)
HOUR_STEPS = (2, 3, 4, 6, 8, 12)


def minutes(rng: random.Random) -> Schedule:
    """Every so many minutes."""
    count = rng.choice(MINUTE_STEPS)
    return Schedule(f"*/{count} * * * *", {"count": spell_number(rng, count)})


def minutes_on_days(rng: random.Random) -> Schedule:
    """Every so many minutes, on some days of the week."""
    count = rng.choice(MINUTE_STEPS)
    field, days = draw_day_group(rng)
    return Schedule(f"*/{count} * * * {field}", {"count": spell_number(rng, count), "days": days})


def hours(rng: random.Random) -> Schedule:
    """Every so many hours, on the hour."""
    count = rng.choice(HOUR_STEPS)
    return Schedule(
        f"0 */{count} * * *", {"count": spell_number(rng, count), "ordinal": spell_nth(rng, count)}
    )


def hourly(rng: random.Random) -> Schedule:
    """Once an hour, at one minute."""
    minute = rng.choice((5 * rng.randrange(1, 12), rng.randrange(1, 60)))
    past = past_the_hour(minute) if minute % 5 == 0 else f"{minute} minutes past"
    return Schedule(f"{minute} * * * *", {"minute": spell_number(rng, minute), "past": past})


def hour_range(rng: random.Random) -> Schedule:
    """Every hour of a stretch of the day."""
    first, last = draw_hour_span(rng)
    return Schedule(f"0 {first}-{last} * * *", spell_hours(rng, first, last))


SCHEDULES: Mapping[str, tuple[Draw, int]] = {
    "daily": (daily, 5),
    "weekly": (weekly, 5),
    "day_list": (day_list, 4),
    "workdays": (workdays, 4),
    "weekend": (weekend, 3),
    "day_range": (day_range, 3),
    "monthly": (monthly, 4),
    "twice_monthly": (twice_monthly, 2),
    "yearly": (yearly, 5),
    "month_daily": (month_daily, 3),
    "month_range": (month_range, 2),
    "month_weekday": (month_weekday, 3),
    "twice_daily": (twice_daily, 3),
    "minutes": (minutes, 3),
    "minutes_on_days": (minutes_on_days, 3),
    "hours": (hours, 3),
    "hourly": (hourly, 3),
    "hour_range": (hour_range, 3),
}
"""Kind of schedule → how its values are drawn, and how often relative to the others."""


# Rows ------------------------------------------------------------------------------------------


def sentences(
    split: str, wordings: Mapping[str, Any], rng: random.Random
) -> Iterator[tuple[str, str]]:
    """Yield (sentence, cron) without end; a kind's wordings and the frames take turns."""
    kinds = list(SCHEDULES)
    weights = [weight for _, weight in SCHEDULES.values()]
    whens = {kind: Turns(wordings["schedules"][kind][split], rng) for kind in kinds}
    frames, jobs = Turns(wordings["frames"][split], rng), Turns(wordings["jobs"][split], rng)
    while True:
        [kind] = rng.choices(kinds, weights)
        schedule = SCHEDULES[kind][0](rng)
        job, doing = jobs.next()
        when = whens[kind].next().format(**schedule.slots)
        sentence = frames.next().format(job=job, doing=doing, when=when)
        yield sentence[0].upper() + sentence[1:], schedule.cron


class Turns:
    """Deals the items in shuffled rounds, so that each appears equally often."""

    def __init__(self, items: Sequence[Any], rng: random.Random) -> None:
        self.items, self.rng, self.left = items, rng, []

    def next(self) -> Any:
        """Return the next item of the round."""
        if not self.left:
            self.left = self.rng.sample(self.items, len(self.items))
        return self.left.pop()


def make_rows(split: str, *, seed: int = SEED) -> list[dict[str, Any]]:
    """Return the rows of `train` or `heldout`, in the chat format, without duplicates."""
    wordings = tomllib.loads((FOLDER / "wordings.toml").read_text(encoding="utf-8"))
    rng = random.Random(f"{split} {seed}")
    answers: dict[str, str] = {}
    for sentence, cron in sentences(split, wordings, rng):
        answers[sentence] = cron
        if len(answers) == ROWS[split]:
            break
    return [
        {
            "messages": [
                {"role": "system", "content": wordings["system"]},
                {"role": "user", "content": sentence},
                {"role": "assistant", "content": cron},
            ]
        }
        for sentence, cron in answers.items()
    ]


def main() -> None:
    """Write both files beside this one."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for split in ROWS:
        rows = make_rows(split)
        path = FOLDER / f"{split}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        logging.info("%s: %d rows", path, len(rows))


if __name__ == "__main__":
    main()
