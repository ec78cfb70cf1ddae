"""BLEnD and CountryRC as tasks: culture questions of 16 places, and passages that only mention a country, from the user's copies.

BLEnD (Myung et al. 2024, arXiv 2406.09948): a folder of PLACE.jsonl, one question a line: id, topic, en_question, answers (each
with en_answers and how many annotators gave it). Its multiple-choice files are not needed: wrong options are what
other places answer to the same question. CountryRC (Yamamoto et al. 2025, arXiv 2510.08284): a JSON list of id, context with
a {country} slot (some with {country_dummy}), question. Neither comes with this package.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data.generate.items import rng_for, sentence_case
from patchclamp.data.task_items import TaskItem
from patchclamp.data.tasks import Task

FORMS = ("letters", "answers")
LETTERS = "ABCDEFGH"
# The paper finds neurons on the first topics and tests on the others.
FINDING_TOPICS = ("Food", "Sport", "Work life")
NAME_WORDINGS = (
    "{context}\nQuestion: {question}",
    "Read the passage and answer the question.\nPassage: {context}\nQuestion: {question}",
    "Passage: {context}\n{question}",
    "{context} {question}",
)


def blend(
    folder: str | os.PathLike[str],
    *,
    countries: Iterable[str] | None = None,
    topics: Iterable[str] | None = None,
    form: str = "letters",
    question: bool = True,
    options: int = 4,
    per_country: int | None = None,
    seed: int = 0,
) -> Task:
    """BLEnD questions in English with options; labels: country (the file's name), topic, question (its id).

    countries, topics: which (all by default). form: "letters" (options A. to D., the answer is a letter, as in the paper) or
    "answers" (options in a row, the answer is written out: for models that don't know letters). question: False leaves
    the question out, for the control. options: how many. per_country: at most so many questions of each, drawn at random: of
    every country the same, as far as it answered them, and the same for question=True and False. Questions that nobody
    answered, or that have too few wrong options, are left out.
    InputError for a folder without such files, unknown countries or topics.
    """
    if form not in FORMS:
        raise InputError(f"form={form!r} given; it is one of {', '.join(FORMS)}")
    if not 2 <= options <= len(LETTERS):
        raise InputError(f"options={options} given; a question has 2 to {len(LETTERS)}")
    records = _records(Path(folder).expanduser(), countries)
    wanted = None if topics is None else set(topics)
    known = {str(record["topic"]) for rows in records.values() for record in rows}
    if wanted is not None and (unknown := sorted(wanted - known)):
        raise InputError(f"topic {unknown[0]!r} asked for; there are {', '.join(sorted(known))}")
    answers = _answers(records)
    items: list[TaskItem] = []
    for country, rows in records.items():
        made, order = 0, rows if per_country is None else sorted(rows, key=lambda row: _drawn(seed, row))
        for record in order:
            if (wanted is not None and record["topic"] not in wanted) or made == per_country:
                continue
            item = _question(country, record, answers, form=form, asked=question, options=options, seed=seed)
            if item is not None:
                items.append(item)
                made += 1
    return Task.of(items, name="BLEnD" if question else "BLEnD without questions")


def country_rc(
    file: str | os.PathLike[str],
    *,
    countries: Iterable[str],
    form: str = "letters",
    split: str = "train",
    options: int = 4,
    seed: int = 0,
) -> Task:
    """CountryRC passages about each country, in four wordings; labels: country, template, wording.

    countries: as the main task's groups are called ("South_Korea" is read as South Korea). split: "train" is the first half of
    the templates, "heldout" the second, "all" both. form, options: as in `blend`.
    """
    if form not in FORMS or split not in ("train", "heldout", "all"):
        raise InputError(
            f"form={form!r} and split={split!r} given; forms {', '.join(FORMS)}; splits train, heldout, all"
        )
    templates = _templates(Path(file).expanduser())
    half = len(templates) // 2
    chosen = {"train": templates[:half], "heldout": templates[half:], "all": templates}[split]
    named = {country: country.replace("_", " ") for country in countries}
    if len(named) < options:
        raise InputError(f"{len(named)} countries given; {options} options need at least as many")
    items = []
    for template in chosen:
        for wording, asked in enumerate(NAME_WORDINGS):
            for country, name in named.items():
                rng = rng_for("country rc", seed, template["id"], wording, country)
                others = rng.sample([other for other in named.values() if other != name], options - 1)
                context = template["context"].replace("{country}", name).replace("{country_dummy}", others[0])
                prompt = asked.format(context=context, question=template["question"])
                listed = [name, *others]
                rng.shuffle(listed)
                labels = {"country": country, "template": str(template["id"]), "wording": str(wording)}
                items.append(_item(prompt, name, listed, form, labels, f"{template['id']}/{country}"))
    return Task.of(items, name="CountryRC")


def _question(
    country: str, record: Mapping[str, Any], answers: Mapping[str, Mapping[str, list[str]]], *,
    form: str, asked: bool, options: int, seed: int,
) -> TaskItem | None:  # fmt: skip
    """One question with wrong options from other countries; None if it can't be made."""
    number = str(record["id"])
    right = answers[country].get(number)
    if not right:
        return None
    taken = {_plain(text) for text in right}
    rng = rng_for("blend", seed, country, number)
    wrong: list[str] = []
    others = [other for other in answers if other != country]
    for other in rng.sample(others, len(others)):
        text = next(iter(answers[other].get(number, [])), None)
        if text is not None and _plain(text) not in taken and len(wrong) < options - 1:
            wrong.append(text)
            taken.add(_plain(text))
    if len(wrong) < options - 1:
        return None
    listed = [right[0], *wrong]
    rng.shuffle(listed)
    said = str(record["en_question"]) if asked else ""
    labels = {"country": country, "topic": str(record["topic"]), "question": number}
    return _item(f"Question: {said}" if said else "", right[0], listed, form, labels, f"{number}/{country}")


def _item(said: str, answer: str, listed: Sequence[str], form: str, labels: dict[str, str], group: str) -> TaskItem:
    """Question (or passage), options and "Answer:"."""
    if form == "letters":
        lines = [said, *(f"{letter}. {text}" for letter, text in zip(LETTERS, listed, strict=False)), "Answer:"]
        letters = tuple(f" {letter}" for letter in LETTERS[: len(listed)])
        right = letters[list(listed).index(answer)]
        return TaskItem("\n".join(filter(None, lines)), (right,), letters, labels, group=group)
    prompt = " ".join(filter(None, [sentence_case(", ".join(listed)) + ".", said, "Answer:"]))
    return TaskItem(prompt, (" " + answer,), tuple(" " + text for text in listed), labels, group=group)


def _records(folder: Path, countries: Iterable[str] | None) -> dict[str, list[dict[str, Any]]]:
    """Country -> its records, from PLACE.jsonl."""
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    wanted = list(files) if countries is None else list(countries)
    if not files or not wanted:
        raise InputError(f"{folder} holds no PLACE.jsonl of BLEnD")
    if unknown := [country for country in wanted if country not in files]:
        raise InputError(f"{folder} has no {unknown[0]}.jsonl; it has {', '.join(files)}")
    return {country: _lines(files[country]) for country in wanted}


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            complete = {"id", "topic", "en_question", "answers"} <= set(record)
        except (json.JSONDecodeError, TypeError) as problem:
            raise DamagedError(f"{path}, line {number}, is not a JSON object: {problem}") from problem
        if not complete:
            raise InputError(f"{path}, line {number}: a BLEnD question has id, topic, en_question and answers")
        found.append(record)
    return found


def _answers(records: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[str]]]:
    """Country -> question id -> English answers, the one that most annotators gave first."""
    found: dict[str, dict[str, list[str]]] = {}
    for country, rows in records.items():
        found[country] = {}
        for record in rows:
            ordered = sorted(record["answers"], key=lambda answer: -int(answer.get("count", 0)))
            texts = [str(text).strip() for answer in ordered for text in answer.get("en_answers", [])]
            if texts := [text for text in texts if text]:
                found[country][str(record["id"])] = texts
    return found


def _templates(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        complete = isinstance(found, list) and all({"id", "context", "question"} <= set(entry) for entry in found)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as problem:
        raise DamagedError(f"{path} is not a JSON file: {problem}") from problem
    if not complete or len(found) < 2:
        raise InputError(
            f"{path} is not CountryRC: a list of at least two objects with id, context and question is needed"
        )
    return found


def _drawn(seed: int, record: Mapping[str, Any]) -> float:
    """A random number that depends on the question and the seed alone."""
    return rng_for("blend questions", seed, record["id"]).random()


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()
