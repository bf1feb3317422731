"""Multi-turn rows made up from a seed: the same texts on every machine, no download.

Nine words in ten are common English ones, drawn unevenly; the rest are names, numbers and
identifiers put together from syllables, so that a tokenizer meets words that it knows whole and
words that it must put together, about four characters a token as in English. Sentences have
punctuation, some turns lists or code, a few rows scripts other than Latin.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

COMMON = """
the of and to a in is it you that he was for on are with as I his they be at one have this from or
had by hot but some what there we can out other were all your when up use word how said an each she
which do their time if will way about many then them would write like so these her long make thing
see him two has look more day could go come did my sound no most number who over know water than
call first people may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just form
much great think say help low line before turn cause same mean differ move right boy old too does
tell sentence set three want air well also play small end put home read hand port large spell add
even land here must big high such follow act why ask men change went light kind off need house
picture try us again animal point mother world near build self earth father head stand own page
should country found answer school grow study still learn plant cover food sun four thought let keep
eye never last door between city tree cross since hard start might story saw far sea draw left late
run while press close night real life few stop open seem together next white children begin got walk
example ease paper often always music those both mark book letter until mile river car feet care
second group carry took rain eat room friend began idea fish mountain north once base hear horse cut
sure watch color face wood main enough plain girl usual young ready above ever red list though feel
talk bird soon body dog family direct pose leave song measure state product black short numeral
class wind question happen complete ship area half rock order fire south problem piece told knew
pass farm top whole king size heard best hour better true during hundred remember step early hold
west ground interest reach fast five sing listen six table travel less morning ten simple several
vowel toward war lay against pattern slow center love person money serve appear road map science
rule govern pull cold notice voice fall power town fine certain fly unit lead cry dark machine note
wait plan figure star box noun field rest correct able pound done beauty drive stood contain front
teach week final gave green quick develop sleep warm free minute strong special mind behind clear
tail produce fact street inch lot nothing course stay wheel full force blue object decide surface
deep moon island foot yet busy test record boat common gold possible plane age dry wonder laugh
thousand ago ran check game shape yes cool miss brought heat snow bed bring sit perhaps fill east
weight language among function return value model data string error server default install python
"""
SYLLABLES = (
    "ka mor tel in ver dos ri pan lo sta ben qui tor ma ne shi gra pol ux fen ti or bal cri du en "
    "has jo ket lum nar os pri rel sun thi ul vas wen yor zam"
)
OTHER_SCRIPTS = (
    "Привет, как дела сегодня?",
    "今天的天气怎么样?",
    "שלום עולם",
    "안녕하세요 반갑습니다",
    "👩‍👩‍👧 emoji 🎉 é",
)
LEXICON = 20_000
SYSTEM = (
    "You are a helpful assistant.",
    "You are a careful assistant. Answer in short sentences and say when you do not know.",
)


def conversations(rows: int, seed: int = 0, turns: int | None = None) -> Iterator[list[dict]]:
    """Yield conversations of 2 to 20 turns, user first; a third has a system turn before.

    `turns` fixes how many turns each has. A question has about 25 words, an answer about 60.
    """
    random = np.random.default_rng(seed)
    words = _lexicon()
    for _ in range(rows):
        count = turns or int(random.integers(2, 21))
        lengths = np.clip(random.lognormal(np.log([20, 50] * (-(-count // 2))), 0.7), 1, 400)
        messages = [
            {"role": ("user", "assistant")[turn % 2], "content": _text(random, words, int(length))}
            for turn, length in enumerate(lengths[:count])
        ]
        if random.random() < 1 / 3:
            system = SYSTEM[int(random.integers(len(SYSTEM)))]
            messages.insert(0, {"role": "system", "content": system})
        yield messages


def write_conversations(path: Path, rows: int, seed: int = 0, turns: int | None = None) -> Path:
    """Write a JSON Lines file with `messages` in each row."""
    with path.open("w", encoding="utf-8") as file:
        for messages in conversations(rows, seed, turns):
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return path


def _lexicon() -> list[str]:
    random = np.random.default_rng(0)
    syllables = SYLLABLES.split()
    words = COMMON.split()
    while len(words) < LEXICON:
        parts = random.integers(len(syllables), size=int(random.integers(1, 4)))
        word = "".join(syllables[part] for part in parts)
        kind = random.random()
        if kind < 0.2:
            word = word.capitalize()
        elif kind < 0.3:
            word = f"{word}_{syllables[parts[0]]}()"
        elif kind < 0.4:
            word = str(int(random.integers(1, 100_000)))
        words.append(word)
    return words


def _text(random: np.random.Generator, words: list[str], length: int) -> str:
    # nine words in ten are common ones, the first of them far more often than the last
    common, rare = random.random((2, length))
    known = len(COMMON.split())
    ranks = (known * common**2.5).astype(int)
    ranks = np.where(rare < 0.1, (known + (len(words) - known) * rare * 10).astype(int), ranks)
    chosen = [words[rank] for rank in ranks.tolist()]
    start = 0
    for size in random.integers(4, 18, size=length // 4 + 1).tolist():
        end = min(start + size, length) - 1
        if end < start:
            break
        chosen[start] = chosen[start].capitalize()
        if end - start > 8:
            chosen[start + 4] += ","
        chosen[end] += "." if random.random() < 0.85 else "?"
        start = end + 1
    text = " ".join(chosen)
    kind = random.random()
    if kind < 0.08:
        return text.replace(". ", ".\n- ")
    if kind < 0.14:
        return f"{text}\n\n```python\ndef {words[ranks[0]].strip('()')}(x):\n    return x + 1\n```"
    if kind < 0.16:
        return f"{text} {OTHER_SCRIPTS[int(random.integers(len(OTHER_SCRIPTS)))]}"
    return text
