"""Addition and subtraction of numbers up to two digits, in signs and in words of six languages.

Splits: `train`; `heldout`: pairs of two-digit numbers that training never saw in any wording (same operation).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from patchclamp.data.generate.items import (
    LANGUAGES,
    Item,
    check_count,
    check_languages,
    check_split,
    is_held_out,
    rng_for,
)

SPLITS = ("train", "heldout")
HELD_OUT_SHARE = 0.1
SIGN_SHARE = 0.6  # of the items are written in signs, which belong to no language

# {a} and {b} are the numbers; the answer follows at once, with a space where the wording ends in one
SIGNS = ("{a}+{b}=", "{a} + {b} = "), ("{a}-{b}=", "{a} - {b} = ")
WORDS = {
    "en": ("{a} plus {b} is ", "{a} minus {b} is "),
    "de": ("{a} plus {b} ist ", "{a} minus {b} ist "),
    "fr": ("{a} plus {b} font ", "{a} moins {b} font "),
    "ru": ("{a} плюс {b} будет ", "{a} минус {b} будет "),
    "zh": ("{a}加{b}等于", "{a}减{b}等于"),
    "ja": ("{a}足す{b}は", "{a}引く{b}は"),
}
OPERATIONS = ("addition", "subtraction")


def arithmetic(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    operations: Iterable[str] | None = None,
    count: int | None = 1000,
) -> Iterator[Item]:
    """Yield `count` problems (None: without end) drawn with replacement; sums to 198, differences never negative.

    Labels: skill "arithmetic", operation, language ("none" for signs), a, b, form (template). Choices: the answer and
    three wrong ones that miss by one or by ten. languages=[] is refused; a language given limits the worded problems.
    """
    check_split(split, SPLITS)
    check_count(count)
    wanted = check_languages(languages, LANGUAGES)
    kinds = check_languages(operations, OPERATIONS)
    rng = rng_for("arithmetic", seed, split)
    made = 0
    while count is None or made < count:
        operation = rng.choice(kinds)
        low = 0 if split == "train" and rng.random() < 0.2 else 10
        a, b = rng.randint(low, 99), rng.randint(low, 99)
        if operation == "subtraction" and a < b:
            a, b = b, a
        if (_split_of(operation, a, b)) == split:
            made += 1
            yield _item(operation, a, b, wanted, split, rng)


def _split_of(operation: str, a: int, b: int) -> str:
    two_digits = a >= 10 and b >= 10
    return "heldout" if two_digits and is_held_out(HELD_OUT_SHARE, operation, a, b) else "train"


def _item(operation: str, a: int, b: int, languages: tuple[str, ...], split: str, rng: random.Random) -> Item:
    index = OPERATIONS.index(operation)
    if rng.random() < SIGN_SHARE:
        language, form = "none", rng.choice(SIGNS[index])
    else:
        language = rng.choice(languages)
        form = WORDS[language][index]
    space = " " if form.endswith(" ") else ""
    value = a + b if operation == "addition" else a - b
    wrong = [value + step for step in (1, -1, 10, -10, 2) if value + step >= 0][:3]
    choices = [space + str(choice) for choice in (value, *wrong)]
    rng.shuffle(choices)
    return Item(
        prompt=form.rstrip().format(a=a, b=b),
        answer=space + str(value),
        choices=tuple(choices),
        split=split,
        labels={
            "skill": "arithmetic",
            "operation": operation,
            "language": language,
            "a": str(a),
            "b": str(b),
            "form": form,
        },
    )
