"""Synthetic lines that running text lacks: amounts, dates, addresses, codes, random strings.

A model that only sees prose learns to guess words; these lines can only be read. Every maker takes a generator and a
corpus, whether or not it needs words.
"""

from __future__ import annotations

import datetime
import string
from collections.abc import Callable
from random import Random
from typing import Final

from trainer.nano.corpus.charset import LATIN_1, LATIN_EXTENDED
from trainer.nano.corpus.corpus import Corpus
from trainer.nano.corpus.words import CODE_SHAPES, CURRENCIES, DOMAINS, FIRST_NAMES, LABELS, LAST_NAMES, MONTHS, STREETS

LineMaker = Callable[[Random, Corpus], str]

_LOOK_ALIKE: Final = "Il1|O0o5S8B2Z6G9gqrnmcldvvw.,:;'`\""
_PUNCTUATION: Final = string.punctuation + "–—‘’“”„…•«»§°€£±·"


def amount(rng: Random, _corpus: Corpus | None = None) -> str:
    """An amount of money or a plain number in one of many formats, such as `-$12.00`."""
    value = rng.choice((rng.random() * 10, rng.random() * 1_000, rng.random() * 1_000_000))
    text = f"{value:,.{rng.choice((0, 2, 2, 2, 1, 3))}f}"
    style = rng.randrange(4)
    if style == 1:
        text = text.translate(str.maketrans(",.", ".,"))
    elif style == 2:
        text = text.replace(",", " ").replace(".", ",")
    elif style == 3:
        text = text.replace(",", rng.choice(("'", "", "’")))
    sign = rng.choice(("", "", "", "", "-", "+", "−", "~", "±"))
    unit = rng.choice(CURRENCIES)
    shape = rng.randrange(6)
    if shape == 0:
        return f"{sign}{unit if len(unit) == 1 else unit + ' '}{text}"
    if shape == 1:
        return f"{sign}{text} {unit}"
    if shape == 2:
        return f"{sign}{text} {rng.choice(('%', 'kg', 'mm', 'km/h', '°C', 'm²', 'kWh', 'MB', 'h', 'ml', '‰'))}"
    if shape == 3:
        return f"({text})"
    return sign + text


def date(rng: Random, _corpus: Corpus | None = None) -> str:
    """A date or a time in one of about ten formats."""
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(55_000))
    month = rng.choice(MONTHS).split()[day.month - 1]
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    return rng.choice(
        (
            day.isoformat(),
            f"{day:%d.%m.%Y}",
            f"{day:%d/%m/%Y}",
            f"{day:%m/%d/%y}",
            f"{day.day}. {month} {day.year}",
            f"{month} {day.day}, {day.year}",
            f"{day.day} {month[:3]} {day.year}",
            f"{day:%d-%m-%Y} {clock}",
            f"{day.isoformat()}T{clock}:{rng.randrange(60):02d}Z",
            f"{clock} – {rng.randrange(24):02d}:00",
            f"{day.day}.{day.month}.{day.year % 100:02d}",
        )
    )


def person(rng: Random, _corpus: Corpus | None = None) -> str:
    """A person's name, sometimes with a title or an initial."""
    title = rng.choice(("", "", "", "Dr. ", "Mr ", "Ms ", "Prof. ", "Frau ", "M. "))
    middle = rng.choice(("", "", "", f"{rng.choice(string.ascii_uppercase)}. "))
    return f"{title}{rng.choice(FIRST_NAMES)} {middle}{rng.choice(LAST_NAMES)}"


def email(rng: Random, corpus: Corpus) -> str:
    """An e-mail address in ASCII."""
    name = rng.choice(("{a}.{b}", "{a}_{b}", "{a}{n}", "{a}", "{x}.{b}", "{a}-{b}+{n}")).format(
        a=_slug(rng, corpus), b=_slug(rng, corpus), n=rng.randrange(2000), x=rng.choice(string.ascii_lowercase)
    )
    return f"{name}@{_slug(rng, corpus)}.{rng.choice(DOMAINS)}"


def url(rng: Random, corpus: Corpus) -> str:
    """A web address, sometimes with path and query."""
    head = rng.choice(("https://", "http://", "www.", "https://www.", "ftp://"))
    tail = rng.choice(("", "/", "/{a}", "/{a}/{b}.html", "/{a}?id={n}", "/{a}/{n}#{b}", "/{a}?q={b}&p={n}", "/~{a}/"))
    path = tail.format(a=_slug(rng, corpus), b=_slug(rng, corpus), n=rng.randrange(99_999))
    return f"{head}{_slug(rng, corpus)}.{rng.choice(DOMAINS)}{path}"


def phone(rng: Random, _corpus: Corpus | None = None) -> str:
    """A telephone number in one of several national formats."""
    shape = rng.choice(
        ("+## ### #######", "(###) ###-####", "0## / ### ## ##", "+1-###-###-####", "0#### ######", "## ## ## ## ##")
    )
    return filled(rng, shape)


def iban(rng: Random, _corpus: Corpus | None = None) -> str:
    """A number in the format of an IBAN, tax or article number; check digits are random."""
    shape = rng.choice(
        (
            "@@## #### #### #### #### ##",
            "@@####################",
            "@@ ### ### ###",
            "@@@-####-##",
            "#### #### #### ####",
            "No. ######/##",
            "###-##-####",
            "@#@ #@#",
            "ISBN 978-#-##-######-#",
            "@@@@@@##@@@",
            "v#.##.#-rc#",
            "##:##:##:##:##:##",
            "#.###.###/####-##",
        )
    )
    return filled(rng, shape)


def code_line(rng: Random, corpus: Corpus) -> str:
    """A line of code in no particular language."""
    words = [_slug(rng, corpus) for _ in range(3)]
    return rng.choice(CODE_SHAPES).format(
        a=words[0],
        b=words[1],
        c=words[2],
        A=words[0].upper(),
        B=words[1].upper(),
        n=rng.randrange(1000),
        m=rng.randrange(16),
        h=f"{rng.randrange(65536):x}",
        x=rng.choice(string.ascii_letters),
    )


def random_string(rng: Random, _corpus: Corpus | None = None) -> str:
    """One to six random strings of letters, digits and punctuation, separated by spaces."""
    alphabets = (
        string.ascii_letters + string.digits,
        string.ascii_uppercase + string.digits,
        string.digits,
        string.ascii_letters + string.digits + _PUNCTUATION,
        LATIN_1 + string.ascii_letters,
        LATIN_EXTENDED + string.ascii_lowercase,
        _PUNCTUATION + string.digits,
        _LOOK_ALIKE,
    )
    parts = []
    for _ in range(rng.randint(1, 6)):
        alphabet = rng.choice(alphabets)
        parts.append("".join(rng.choices(alphabet, k=rng.randint(1, 10))))
    return " ".join(parts)


def confusable_string(rng: Random, _corpus: Corpus | None = None) -> str:
    """Two to seven words of random letters with accents, or of signs that look alike."""
    alphabets = (
        LATIN_EXTENDED,
        LATIN_1,
        LATIN_1 + LATIN_EXTENDED + string.ascii_letters,
        "".join(rng.choices(LATIN_1 + LATIN_EXTENDED, k=6)) + string.ascii_lowercase,
        _LOOK_ALIKE,
        _LOOK_ALIKE + string.digits,
        _PUNCTUATION + _LOOK_ALIKE,
    )
    return " ".join("".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 9))) for _ in range(rng.randint(2, 7)))


def random_words(rng: Random, corpus: Corpus) -> str:
    """Two to nine random words in mixed case and with stray punctuation."""
    words = corpus.words(rng, rng.randint(2, 9))
    shaped = []
    for word in words:
        shape = rng.random()
        shaped.append(word.upper() if shape < 0.12 else word.capitalize() if shape < 0.35 else word)
        if rng.random() < 0.12:
            shaped[-1] += rng.choice(",.;:!?)-")
        if rng.random() < 0.06:
            shaped[-1] = rng.choice("(„“'\"«[*#&") + shaped[-1]
    return " ".join(shaped)


def labelled(rng: Random, corpus: Corpus) -> str:
    """A label and its value, such as `Due date: 12.03.2021`."""
    maker: LineMaker = rng.choice((amount, date, phone, iban, email, person))
    return f"{rng.choice(LABELS)}{rng.choice((':', ':', '', ' –', ' ='))} {maker(rng, corpus)}"


def address(rng: Random, corpus: Corpus) -> list[str]:
    """A postal address of three to six lines."""
    street, town, firm = (word.capitalize() for word in corpus.words(rng, 3))
    kind = rng.choice(STREETS)
    number = f"{rng.randrange(1, 300)}{rng.choice(('', '', 'a', 'b', '/2'))}"
    front = rng.choice((f"{number} {street} {kind}", f"{street}{kind if kind.islower() else ' ' + kind} {number}"))
    place = rng.choice(
        (f"{filled(rng, '#####')} {town}", f"{town}, {filled(rng, '@@ #####')}", f"{filled(rng, '@@# #@@')} {town}")
    )
    lines = [person(rng), front, place]
    if rng.random() < 0.5:
        lines.insert(
            0, f"{firm} {rng.choice(('GmbH', 'Ltd.', 'Inc.', '& Co. KG', 'S.A.', 's.r.o.', 'AG', 'S.r.l.', 'B.V.'))}"
        )
    contacts: tuple[LineMaker, ...] = (phone, email, url)
    return lines + [maker(rng, corpus) for maker in contacts if rng.random() < 0.25]


_LINE_MAKERS: Final[tuple[tuple[LineMaker, float], ...]] = (
    (random_words, 0.3),
    (random_string, 0.2),
    (labelled, 0.12),
    (amount, 0.06),
    (date, 0.06),
    (person, 0.04),
    (email, 0.05),
    (url, 0.06),
    (phone, 0.03),
    (iban, 0.04),
    (code_line, 0.06),
)


def any_line(rng: Random, corpus: Corpus) -> str:
    """A line of any kind, rarely over 90 characters."""
    makers = [maker for maker, _ in _LINE_MAKERS]
    return rng.choices(makers, [weight for _, weight in _LINE_MAKERS])[0](rng, corpus)


def _slug(rng: Random, corpus: Corpus) -> str:
    word = corpus.words(rng, 1)[0].lower()
    plain = "".join(character for character in word if character in string.ascii_lowercase)
    return plain[:12] or "".join(rng.choices(string.ascii_lowercase, k=5))


def filled(rng: Random, shape: str) -> str:
    """A shape with random digits for `#` and capital letters for `@`."""
    return "".join(
        rng.choice(string.digits) if mark == "#" else rng.choice(string.ascii_uppercase) if mark == "@" else mark
        for mark in shape
    )
