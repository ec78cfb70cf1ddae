"""How exemplars are put to a language model, so that it describes units and judges descriptions."""

from __future__ import annotations

from collections.abc import Sequence

from patchclamp.read.exemplar import Exemplar, marked
from patchclamp.read.exemplar_store import Exemplars

SHOWN = 8  # passages in a prompt


def passages(shown: Exemplars, *, count: int = SHOWN) -> str:
    """The top passages, one a line, what fires in double brackets."""
    lines = [" ".join(marked(one, shown.bar).split()) for one in shown.top[:count]]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def description_prompt(shown: Exemplars, *, count: int = SHOWN) -> str:
    """Ends where the description begins; the text of a description with a space in front follows."""
    return (
        "In each passage, some words are marked with double brackets.\n\n"
        f"{passages(shown, count=count)}\n\n"
        "In a few words, all the marked words are:"
    )


def fit_prompt(description: str, shown: Exemplars, *, count: int = SHOWN) -> str:
    """A yes-or-no question: does a description fit the marked words of a unit?"""
    return (
        "In each passage, some words are marked with double brackets.\n\n"
        f"{passages(shown, count=count)}\n\n"
        f"Description: {description}\n"
        "Does the description say what the marked words have in common? Answer Yes or No.\nAnswer:"
    )


def part_prompt(description: str, one: Exemplar, part: int) -> str:
    """A yes-or-no question: does a description fit one token of a passage?"""
    texts = list(one.parts)
    bare = texts[part].lstrip()
    texts[part] = f"{texts[part][: len(texts[part]) - len(bare)]}[[{bare}]]"
    return (
        f"Description: {description}\nPassage: {' '.join(''.join(texts).split())}\n"
        "Does the description fit the word in double brackets? Answer Yes or No.\nAnswer:"
    )


def tidy(answers: Sequence[str]) -> list[str]:
    """Descriptions from what a model wrote: the first line of each, without quotes and full stops, each once, no empty ones."""
    first = ((answer.strip().splitlines() or [""])[0] for answer in answers)
    return [text for text in dict.fromkeys(line.strip().strip("\"'“”.").strip() for line in first) if text]
