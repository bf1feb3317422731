"""The quickstart's data: what the answers mean, and that the held-out rows are really held out."""

import json
import re
import tomllib
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
SPLITS = ("train", "heldout")


# A second reading of cron, by brute force over the calendar --------------------------------------


def values(field: str, low: int, high: int) -> list[int]:
    """Return what a field allows: `*`, `*/n`, `a`, `a-b` and lists of those."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    assert found
    assert low <= min(found) <= max(found) <= high, field
    return sorted(found)


def firings(cron: str, start: datetime) -> Iterator[datetime]:
    """Yield the moments at which the expression fires, from `start` on."""
    minute, hour, day, month, weekday = cron.split()
    # Standard cron fires on either day when both are restricted; no answer here relies on that.
    assert "*" in (day, weekday)
    minutes, hours = values(minute, 0, 59), values(hour, 0, 23)
    days, months = values(day, 1, 31), values(month, 1, 12)
    weekdays = values(weekday, 0, 6)
    date = start.replace(hour=0, minute=0)
    while True:
        if date.day in days and date.month in months and date.isoweekday() % 7 in weekdays:
            moments = (date.replace(hour=h, minute=m) for h in hours for m in minutes)
            yield from (moment for moment in moments if moment >= start)
        date += timedelta(days=1)


def test_the_brute_force_reading_of_cron() -> None:
    # 1 January 2026 is a Thursday.
    found = islice(firings("*/20 9-10 * 1 1,4", datetime(2026, 1, 1, 9, 30)), 6)
    assert [f"{moment:%d %H:%M}" for moment in found] == [
        "01 09:40", "01 10:00", "01 10:20", "01 10:40", "05 09:00", "05 09:20",
    ]  # fmt: skip


# Written by hand from the sentences alone: the first moments after Thursday, 1 January 2026, 00:00.
BY_HAND = {
    "Rotate the logs once a day at 13:45": ["01-01 13:45", "01-02 13:45"],
    "At 7 pm each Sunday, start renewing the certificates": ["01-04 19:00", "01-11 19:00"],
    "Remember to scan for viruses Sundays, Thursdays and Saturdays "
    "at seven o'clock in the morning": [
        "01-01 07:00", "01-03 07:00", "01-04 07:00", "01-08 07:00",
    ],
    "Set it up to feed the fish every weekday at 12:15 am": [
        "01-01 00:15", "01-02 00:15", "01-05 00:15",
    ],
    "Weekends only, at 9:30 am, it is time to download the price list.": [
        "01-03 09:30", "01-04 09:30", "01-10 09:30",
    ],
    "At quarter past two in the afternoon, Wednesday to Friday, please export the invoices.": [
        "01-01 14:15", "01-02 14:15", "01-07 14:15",
    ],
    "I would like the system to turn on the heating every month, day 8, "
    "at quarter to two in the morning.": ["01-08 01:45", "02-08 01:45", "03-08 01:45"],
    "Add a job to empty the trash monthly on the 5th and again on the 12th "
    "at ten o'clock at night": ["01-05 22:00", "01-12 22:00", "02-05 22:00"],
    "Emptying the trash has to take place once per year: December 11th, "
    "half past eight in the evening": ["12-11 20:30"],
    "We need to take a snapshot throughout July, every day at 2:30 pm.": [
        "07-01 14:30", "07-02 14:30",
    ],
    "Each day in the months from May to July at 01:00 we have to download the price list": [
        "05-01 01:00", "05-02 01:00",
    ],
    "Ping the gateway: every Sunday in August at noon": ["08-02 12:00", "08-09 12:00"],
    "Add a job to empty the trash twice daily: 2:10 pm and 8:10 pm": [
        "01-01 14:10", "01-01 20:10", "01-02 14:10",
    ],
    "Please back up the database every 4 minutes": ["01-01 00:00", "01-01 00:04", "01-01 00:08"],
    "New rule: download the price list only on weekends: every 2 minutes.": [
        "01-03 00:00", "01-03 00:02",
    ],
    "Remember to back up the database every 20 minutes from 14:00 to 19:59": [
        "01-01 14:00", "01-01 14:20", "01-01 14:40", "01-01 15:00",
    ],
    "Make sure to archive the photos once per two hours": [
        "01-01 00:00", "01-01 02:00", "01-01 04:00",
    ],
    "Automatically renew the certificates at five to every hour": [
        "01-01 00:55", "01-01 01:55",
    ],
    "Downloading the price list has to take place at 23 minutes past every 3rd hour": [
        "01-01 00:23", "01-01 03:23", "01-01 06:23",
    ],
    "Measure the temperature: on the hour from 1 pm through 4 pm": [
        "01-01 13:00", "01-01 14:00", "01-01 15:00", "01-01 16:00", "01-02 13:00",
    ],
    "Can you water the plants on weekends, hourly from 8 am through 7 pm?": [
        "01-03 08:00", "01-03 09:00",
    ],
    "Our team has to pay the suppliers at intervals of 5 minutes on Mondays.": [
        "01-05 00:00", "01-05 00:05",
    ],
    "Add a job to turn on the heating each month on both the 5th and the 19th "
    "at 7:30 in the morning": ["01-05 07:30", "01-19 07:30"],
    "Opening the blinds, on the 20th day of each month at 12:45": ["01-20 12:45", "02-20 12:45"],
}  # fmt: skip


@cache
def rows(split: str) -> list[dict[str, Any]]:
    lines = (QUICKSTART / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def question_and_answer(row: dict[str, Any]) -> tuple[str, str]:
    system, user, assistant = row["messages"]
    roles = [system["role"], user["role"], assistant["role"]]
    assert roles == ["system", "user", "assistant"]
    return user["content"], assistant["content"]


@cache
def answers() -> dict[str, str]:
    return dict(question_and_answer(row) for split in SPLITS for row in rows(split))


@pytest.mark.parametrize("sentence", BY_HAND)
def test_an_answer_fires_when_its_sentence_says(sentence: str) -> None:
    expected = BY_HAND[sentence]
    found = islice(firings(answers()[sentence], datetime(2026, 1, 1)), len(expected))
    assert [f"{moment:%m-%d %H:%M}" for moment in found] == expected


def test_every_answer_is_cron_in_its_one_spelling() -> None:
    number = r"(0|[1-9]\d?)"
    field = re.compile(rf"\*|\*/{number}|{number}-{number}|{number}(,{number})*")
    for sentence, cron in answers().items():
        fields = cron.split(" ")
        assert len(fields) == 5, sentence
        assert all(field.fullmatch(text) for text in fields), cron
        for text in fields:
            listed = [int(part) for part in text.split(",")] if "," in text else []
            assert listed == sorted(set(listed)), cron
        next(firings(cron, datetime(2026, 1, 1)))  # every field within its range


def test_there_are_enough_rows_and_none_twice() -> None:
    sentences = [question_and_answer(row)[0].lower() for split in SPLITS for row in rows(split)]
    assert len(rows("train")) >= 750
    assert len(rows("heldout")) >= 300
    assert len(set(sentences)) == len(sentences)


def words(text: str) -> str:
    """Return the text without case and punctuation, so that a comma makes no new wording."""
    return " ".join(re.findall(r"[\w{}]+", text.lower()))


@cache
def wordings(split: str) -> dict[str, set[str]]:
    table = tomllib.loads((QUICKSTART / "wordings.toml").read_text(encoding="utf-8"))
    whens = {words(when) for kind in table["schedules"].values() for when in kind[split]}
    jobs = {phrase for pair in table["jobs"][split] for phrase in pair}
    return {"whens": whens, "frames": {words(x) for x in table["frames"][split]}, "jobs": jobs}


@pytest.mark.parametrize("part", ["whens", "frames", "jobs"])
def test_no_wording_is_in_both_sets(part: str) -> None:
    assert not wordings("train")[part] & wordings("heldout")[part]


VALUE_WORDS = (
    "sunday monday tuesday wednesday thursday friday saturday weekday weekend january february "
    "march april may june july august september october november december noon midday midnight "
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty first second third fourth fifth "
    "sixth seventh eighth ninth tenth eleventh twelfth am pm quarter half past to o clock "
    "in the at morning afternoon evening night and"
)
VALUE = re.compile(rf"\b({'|'.join(f'{word}s?' for word in VALUE_WORDS.split())})\b|\d+[a-z]*")


def skeleton(sentence: str) -> str:
    """Return the words of a sentence that carry no value and no job: how it is put."""
    text = words(sentence)
    for split in SPLITS:
        for phrase in wordings(split)["jobs"]:
            text = text.replace(phrase, "")
    return " ".join(VALUE.sub(" ", text).split())


def test_no_heldout_sentence_is_put_like_a_training_sentence() -> None:
    put = {
        split: {skeleton(question_and_answer(row)[0]) for row in rows(split)} for split in SPLITS
    }
    assert not put["train"] & put["heldout"]
    assert len(put["heldout"]) > 100


@pytest.fixture
def make_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import make_data

    return make_data


@pytest.mark.parametrize("split", SPLITS)
def test_the_files_are_what_the_generator_makes(make_data: ModuleType, split: str) -> None:
    assert make_data.make_rows(split) == rows(split)


def test_another_seed_makes_other_rows(make_data: ModuleType) -> None:
    assert make_data.make_rows("heldout", seed=1) != rows("heldout")
