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
    "Daily at 4:45 pm": ["01-01 16:45", "01-02 16:45"],
    "At midnight, seven days a week": ["01-01 00:00", "01-02 00:00"],
    "Take a snapshot every Monday at 09:00": ["01-05 09:00", "01-12 09:00"],
    "On Tuesday and Saturday of every week at 8:15am, restart the web server": [
        "01-03 08:15", "01-06 08:15", "01-10 08:15",
    ],
    "At 20:40, but only on Tuesdays, Wednesdays and Fridays we have to remind the crew": [
        "01-02 20:40", "01-06 20:40", "01-07 20:40", "01-09 20:40",
    ],
    "It runs on weekdays at eight o'clock in the evening": [
        "01-01 20:00", "01-02 20:00", "01-05 20:00",
    ],
    "Go every Saturday and Sunday at quarter past one in the afternoon": [
        "01-03 13:15", "01-04 13:15", "01-10 13:15",
    ],
    "Could you download the price list at 17:40 each day Sunday through Thursday?": [
        "01-01 17:40", "01-04 17:40", "01-05 17:40",
    ],
    "Please do it monthly on the first at half past four in the afternoon.": [
        "01-01 16:30", "02-01 16:30", "03-01 16:30",
    ],
    "Let it run monthly on the 19th and again on the 24th at quarter past nine in the evening": [
        "01-19 21:15", "01-24 21:15", "02-19 21:15",
    ],
    "Run it once a year, on the third of November, at one o'clock in the afternoon": [
        "11-03 13:00",
    ],
    "Open the blinds in January only, daily at quarter past eight in the morning.": [
        "01-01 08:15", "01-02 08:15",
    ],
    "I want it from February up to and including September, each day "
    "at eleven o'clock in the morning": ["02-01 11:00", "02-02 11:00"],
    "Each Sunday of April at 3:30 pm we have to ring the bell": ["04-05 15:30", "04-12 15:30"],
    "Do this at 18:50 in August on every Sunday.": ["08-02 18:50", "08-09 18:50"],
    "Renew the certificates: at 03:10 and 08:10 each day": [
        "01-01 03:10", "01-01 08:10", "01-02 03:10",
    ],
    "Launch the script each day first at 11:30am, then at 4:30pm.": [
        "01-01 11:30", "01-01 16:30", "01-02 11:30",
    ],
    "Run it every 6 minutes": ["01-01 00:00", "01-01 00:06", "01-01 00:12"],
    "Only on Wednesdays: every 12 minutes we have to compress the videos": [
        "01-07 00:00", "01-07 00:12",
    ],
    "Can you send the sales report every fourth hour?": [
        "01-01 00:00", "01-01 04:00", "01-01 08:00",
    ],
    "Make sure to empty the trash every 12 hours without a break": [
        "01-01 00:00", "01-01 12:00", "01-02 00:00",
    ],
    "Run it every hour at twenty-five to": ["01-01 00:35", "01-01 01:35"],
    "Do this 52 minutes after every full hour.": ["01-01 00:52", "01-01 01:52"],
    "Every hour from 2 pm to 6 pm, send the sales report": [
        "01-01 14:00", "01-01 15:00", "01-01 16:00", "01-01 17:00", "01-01 18:00", "01-02 14:00",
    ],
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
