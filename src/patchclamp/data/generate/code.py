"""Small Python functions: a signature and a docstring, completed by a body that can be run and checked.

Splits: `train`; `heldout`: (template, name, constant) combinations that training never saw.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from patchclamp.data.generate.items import (
    Item,
    check_count,
    check_languages,
    check_split,
    is_held_out,
    rng_for,
    with_distractors,
)

SPLITS = ("train", "heldout")
HELD_OUT_SHARE = 0.12


@dataclass(frozen=True)
class _Template:
    """One kind of function; {v} is its argument and {k} a constant. cases: (argument, expected) written in k."""

    name: str
    doc: str
    body: str
    argument: str  # a Python literal to call it with
    expected: str  # a Python expression over k that gives the expected result
    takes: str = "number"


TEMPLATES = (
    _Template("add_{k}", "Add {k} to {v}.", "return {v} + {k}", "10", "10 + k"),
    _Template("subtract_{k}", "Subtract {k} from {v}.", "return {v} - {k}", "50", "50 - k"),
    _Template("times_{k}", "Multiply {v} by {k}.", "return {v} * {k}", "3", "3 * k"),
    _Template("power_{k}", "Raise {v} to the power of {k}.", "return {v} ** {k}", "2", "2 ** k"),
    _Template("is_above_{k}", "Check if {v} is greater than {k}.", "return {v} > {k}", "20", "20 > k"),
    _Template("is_below_{k}", "Check if {v} is less than {k}.", "return {v} < {k}", "20", "20 < k"),
    _Template("is_multiple_{k}", "Check if {v} is a multiple of {k}.", "return {v} % {k} == 0", "36", "36 % k == 0"),
    _Template("at_most_{k}", "Limit {v} to at most {k}.", "return min({v}, {k})", "20", "min(20, k)"),
    _Template("at_least_{k}", "Limit {v} to at least {k}.", "return max({v}, {k})", "20", "max(20, k)"),
    _Template(
        "first_{k}",
        "Return the first {k} items of {v}.",
        "return {v}[:{k}]",
        "[1, 2, 3]",
        "[1, 2, 3][:k]",
        "list",
    ),
    _Template(
        "last_{k}",
        "Return the last {k} items of {v}.",
        "return {v}[-{k}:]",
        "[1, 2, 3]",
        "[1, 2, 3][-k:]",
        "list",
    ),
    _Template(
        "longer_than_{k}",
        "Check if {v} has more than {k} items.",
        "return len({v}) > {k}",
        "[1] * 9",
        "9 > k",
        "list",
    ),
    _Template(
        "add_{k}_to_all",
        "Add {k} to every item of {v}.",
        "return [x + {k} for x in {v}]",
        "[1, 2]",
        "[1 + k, 2 + k]",
        "list",
    ),
    _Template(
        "keep_above_{k}",
        "Keep the items of {v} that are greater than {k}.",
        "return [x for x in {v} if x > {k}]",
        "[5, 15]",
        "[x for x in (5, 15) if x > k]",
        "list",
    ),
    _Template(
        "count_{k}",
        "Count how often {k} occurs in {v}.",
        "return {v}.count({k})",
        "[3, 3, 4]",
        "[3, 3, 4].count(k)",
        "list",
    ),
    _Template("repeat_{k}", "Repeat the text {v} {k} times.", "return {v} * {k}", "'ab'", "'ab' * k", "text"),
    _Template(
        "start_{k}",
        "Return the first {k} letters of {v}.",
        "return {v}[:{k}]",
        "'hello'",
        "'hello'[:k]",
        "text",
    ),
    _Template(
        "total_plus_{k}",
        "Sum the items of {v} and add {k}.",
        "return sum({v}) + {k}",
        "[1, 2]",
        "3 + k",
        "list",
    ),
)
VARIABLES = {
    "number": ("n", "x", "number", "value", "a", "amount"),
    "list": ("items", "values", "numbers", "data", "xs", "rows"),
    "text": ("text", "word", "s", "name", "line", "title"),
}
CONSTANTS = range(2, 20)


def code(
    seed: int = 0, split: str = "train", languages: Iterable[str] | None = None, *, count: int | None = 1000
) -> Iterator[Item]:
    """Yield `count` functions (None: without end), drawn with replacement; docstrings are in English.

    The prompt ends with the docstring's closing quotes and the answer is the body, from its line break and indent on.
    Labels: skill "code", language "python", template, function (its name), call (an expression over the function) and
    result (the expression that it must equal). Choices: the bodies of three other templates with the same names.
    """
    check_split(split, SPLITS)
    check_count(count)
    check_languages(languages, ("en",))
    rng = rng_for("code", seed, split)
    made = 0
    while count is None or made < count:
        number, k = rng.randrange(len(TEMPLATES)), rng.choice(CONSTANTS)
        variable = rng.choice(VARIABLES[TEMPLATES[number].takes])
        if is_held_out(HELD_OUT_SHARE, "code", number, variable, k) == (split == "heldout"):
            made += 1
            yield _item(number, variable, k, split, rng)


def _item(number: int, variable: str, k: int, split: str, rng: random.Random) -> Item:
    template = TEMPLATES[number]
    name = template.name.format(k=k)
    prompt = f'def {name}({variable}):\n    """{template.doc.format(v=variable, k=k)}"""'
    bodies = ["\n    " + other.body.format(v=variable, k=k) for other in TEMPLATES if other.takes == template.takes]
    bodies += ["\n    " + other.body.format(v=variable, k=k) for other in TEMPLATES[:3]]
    answer = "\n    " + template.body.format(v=variable, k=k)
    labels = {
        "skill": "code",
        "language": "python",
        "template": template.name,
        "function": name,
        "call": f"{name}({template.argument})",
        "result": re.sub(r"\bk\b", str(k), template.expected),
    }
    return Item(prompt, answer, with_distractors(answer, bodies, rng), "\n", split, labels)
