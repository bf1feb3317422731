"""The ways people write a time, a date and a number."""

import random
from collections.abc import Sequence

DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
UNDER_TWENTY = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
SUFFIXES = {1: "st", 2: "nd", 3: "rd"}
TENS = ("", "", "twenty", "thirty", "forty", "fifty")
ORDINALS = (
    "", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
    "tenth", "eleventh", "twelfth",
)  # fmt: skip


def in_words(number: int) -> str:
    """Return 0 to 59 in words."""
    if number < 20:
        return UNDER_TWENTY[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] if ones == 0 else f"{TENS[tens]}-{UNDER_TWENTY[ones]}"


def suffixed(number: int) -> str:
    """Return `1st`, `2nd`, `3rd`, `4th`, ..."""
    if number in (11, 12, 13):
        return f"{number}th"
    return f"{number}{SUFFIXES.get(number % 10, 'th')}"


def spell_number(rng: random.Random, number: int) -> str:
    """Return digits, or for some numbers words."""
    return in_words(number) if rng.random() < 0.3 else str(number)


def spell_nth(rng: random.Random, number: int) -> str:
    """Return `3rd` or `third`; words only up to twelfth."""
    if number < len(ORDINALS) and rng.random() < 0.35:
        return ORDINALS[number]
    return suffixed(number)


def part_of_day(hour: int) -> str:
    """Return the words that tell six in the morning from six in the evening."""
    if hour < 12:
        return "in the morning"
    if hour < 18:
        return "in the afternoon"
    return "in the evening" if hour < 22 else "at night"


def twelve_hour(hour: int) -> int:
    """Return the hour on a clock face, 1 to 12."""
    return (hour + 11) % 12 + 1


def spell_24(hour: int, minute: int) -> str:
    """Return `18:30`."""
    return f"{hour:02d}:{minute:02d}"


def spell_am_pm(hour: int, minute: int) -> str:
    """Return `6:30 pm`, and `6 pm` at the full hour."""
    clock = f"{twelve_hour(hour)}:{minute:02d}" if minute else str(twelve_hour(hour))
    return f"{clock} {'am' if hour < 12 else 'pm'}"


def spell_tight_am_pm(hour: int, minute: int) -> str:
    """Return `6:30pm`."""
    return spell_am_pm(hour, minute).replace(" ", "")


def spell_figures(hour: int, minute: int) -> str:
    """Return `6:30 in the evening`."""
    clock = f"{twelve_hour(hour)}:{minute:02d}" if minute else str(twelve_hour(hour))
    return f"{clock} {part_of_day(hour)}"


def spell_words(hour: int, minute: int) -> str:
    """Return `half past six in the evening`, `quarter to nine in the morning`, ..."""
    if minute == 0:
        return f"{in_words(twelve_hour(hour))} o'clock {part_of_day(hour)}"
    spoken = hour if minute <= 30 else hour + 1
    name = f"{in_words(twelve_hour(spoken))} {part_of_day(hour)}"
    return f"{past_the_hour(minute)} {name}"


def past_the_hour(minute: int) -> str:
    """Return `half past`, `quarter to`, `twenty past`, `ten to`, ..."""
    if minute == 30:
        return "half past"
    distance, side = (minute, "past") if minute < 30 else (60 - minute, "to")
    return f"{'quarter' if distance == 15 else in_words(distance)} {side}"


CLOCKS = (spell_24, spell_24, spell_am_pm, spell_am_pm, spell_tight_am_pm)


def spell_time(rng: random.Random, hour: int, minute: int) -> str:
    """Return the time in one of the ways people write it."""
    if (hour, minute) == (12, 0):
        return rng.choice(("noon", "midday", "12:00"))
    # In words only where they are quick to read, and not "half past twelve in the afternoon".
    if minute in (0, 15, 30) and hour != 12 and rng.random() < 0.3:
        return spell_words(hour, minute)
    return rng.choice(CLOCKS)(hour, minute)


def joined(words: Sequence[str], last: str = "and") -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def spell_date(rng: random.Random, day: int, month: str) -> str:
    """Return `March 3rd`, `3 March`, `the third of March`, ..."""
    return rng.choice(
        (
            f"{month} {suffixed(day)}",
            f"{month} {day}",
            f"{day} {month}",
            f"the {spell_nth(rng, day)} of {month}",
        )
    )
