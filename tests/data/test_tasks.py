"""Tasks are read, cut, grouped and joined with shots without losing or leaking anything; bad items are named."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data import Task, TaskItem, generated, open_task, task
from patchclamp.data.generate import GENERATORS, Item

CAPITALS = [
    {"prompt": f"The capital of {country} is", "answer": f" {city}", "labels": {"relation": "capital", "half": half}}
    for country, city, half in [
        ("France", "Paris", "a"), ("Italy", "Rome", "a"), ("Spain", "Madrid", "b"), ("Peru", "Lima", "b"),
    ]
]  # fmt: skip
WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ITEMS = st.builds(
    TaskItem,
    prompt=st.text(st.characters(codec="utf-8"), max_size=20),
    answers=st.lists(WORDS, min_size=1, max_size=3).map(tuple),
    labels=st.dictionaries(WORDS, WORDS, max_size=2),
    alternatives=st.lists(WORDS, max_size=2).map(tuple),
    group=st.none() | WORDS,
    id=st.none() | WORDS,
    tail=st.text(st.characters(codec="utf-8"), max_size=3),
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- items -------------------------------------------------------------------------------------------------------


def test_dicts_items_and_generated_items_give_the_same_task() -> None:
    plain = {"prompt": "1 + 1 =", "answers": [" 2"], "choices": [" 2", " 3"], "labels": {"split": "train"}, "tail": "."}
    item = TaskItem("1 + 1 =", (" 2",), (" 2", " 3"), {"split": "train"}, tail=".")
    made = Item("1 + 1 =", " 2", (" 2", " 3"), ".", "train", {})
    assert Task.of([plain]).items == Task.of([item]).items == Task.of([made]).items == (item,)
    assert len({Task.of([one]).fingerprint for one in (plain, item, made)}) == 1


def test_a_minimal_pair_is_a_good_and_a_bad_text() -> None:
    pair = Task.of([{"good": "She sits.", "bad": "She sit."}])[0]
    assert (pair.prompt, pair.answers, pair.choices, pair.right) == (
        "",
        ("She sits.",),
        ("She sits.", "She sit."),
        (True, False),
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"prompt": "x"}, "has no answer"),
        ({"prompt": "x", "answers": []}, "no answer"),
        ({"prompt": "x", "answer": ""}, "empty"),
        ({"prompt": "x", "answer": 2}, "text of the answer, not its number"),
        ({"prompt": 3, "answer": "a"}, "a text is needed"),
        ({"prompt": "x", "answers": "ab"}, "list of texts"),
        ({"prompt": "x", "answer": "a", "answers": ["a"]}, "both answer and answers"),
        ({"prompt": "x", "answer": "a", "choices": ["b", "c"]}, "'a' is not among the choices 'b', 'c'"),
        ({"prompt": "x", "answer": "a", "choices": ["a", "b", "b"]}, "same choice twice"),
        ({"prompt": "x", "answer": "a", "choices": ["a"]}, "no wrong choice"),
        ({"prompt": "x", "answer": "a", "choices": ["a", ""]}, "empty choice"),
        ({"prompt": "x", "answer": "a", "relation": "capital"}, "key 'relation'.*\"labels\""),
        ({"prompt": "x", "answer": "a", "labels": ["b"]}, "labels are"),
        ({"prompt": "x", "answer": "a", "labels": {"b": ["c"]}}, "label 'b'"),
        ({"good": "x", "answer": "a"}, "minimal pair"),
        ({"good": "x"}, "minimal pair"),
        ("text", "is a str"),
    ],
)
def test_an_item_that_cannot_be_asked_is_refused(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"item 1.*{message}"):
        Task.of([CAPITALS[0], item])


def test_an_empty_task_and_a_nameless_one_are_refused() -> None:
    with pytest.raises(InputError, match="no items; give at least one"):
        Task.of([])
    with pytest.raises(InputError, match="name"):
        Task.of(CAPITALS, name=" ")
    with pytest.raises(InputError, match="is a text"):
        Task.of("facts.jsonl")


# --- files -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(items=st.lists(ITEMS, min_size=1, max_size=5))
def test_saved_items_come_back_as_they_were(items: list[TaskItem], tmp_path_factory: pytest.TempPathFactory) -> None:
    made = Task.of(items, name="any")
    again = Task.read(made.save(tmp_path_factory.mktemp("task") / "any.jsonl"))
    assert (again.items, again.name, again.fingerprint) == (made.items, made.name, made.fingerprint)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "answer": " a"', "line 3 is not valid JSON"),
        ("[1, 2]", "line 3 is a list"),
        ('{"prompt": "x"}', "line 3 has no answer"),
        ('{"prompt": "x", "answer": " a", "choices": [" b", " c"]}', "line 3: .*not among"),
    ],
)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "capitals.jsonl", CAPITALS[:1])
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(InputError, match=f"capitals.jsonl, {message}"):
        task(path)


def test_files_that_are_missing_empty_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file at"):
        task(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match="holds no items"):
        task(tmp_path / "empty.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"prompt": "x", "answer": "a"}\n\xff\xfe\n')
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        task(tmp_path / "bytes.jsonl")
    with pytest.raises(InputError, match="no task"):
        task(3)


def test_answers_without_their_space_are_warned_about(tmp_path: Path) -> None:
    path = write(tmp_path / "glued.jsonl", [{**row, "answer": row["answer"].strip()} for row in CAPITALS])
    with pytest.warns(UserWarning, match="without a space, as in .*isParis"):
        task(path)


# --- cutting and grouping ----------------------------------------------------------------------------------------


def test_labels_select_and_group() -> None:
    capitals = Task.of(CAPITALS, name="capitals")
    assert capitals.label_keys == ("relation", "half")
    assert [item.answers[0] for item in capitals.where(half="b")] == [" Madrid", " Lima"]
    assert capitals.where(half=("a", "b")).items == capitals.items
    halves = capitals.by("half")
    assert {name: len(part) for name, part in halves.items()} == {"a": 2, "b": 2}
    assert halves["a"].name == "a"
    for call in (lambda: capitals.by("country"), lambda: capitals.where(country="fr")):
        with pytest.raises(InputError, match="label 'country'; labels are relation, half"):
            call()
    with pytest.raises(InputError, match="half='c'; half is one of a, b"):
        capitals.where(half="c")
    other = {**CAPITALS[0], "labels": {"relation": "river", "half": "b"}}
    with pytest.raises(InputError, match="no items left after where"):
        Task.of([*CAPITALS, other]).where(half="a", relation="river")


def test_a_limited_task_is_a_seeded_sample_in_order() -> None:
    facts = generated("facts", languages="en")
    some = facts.limited(20, seed=3)
    places = [facts.items.index(item) for item in some]
    assert places == sorted(set(places))
    assert some.items == facts.limited(20, seed=3).items != facts.limited(20, seed=4).items
    assert facts.limited(10**6).items == facts.items
    with pytest.raises(InputError, match="at least 1"):
        facts.limited(0)


def test_the_corpus_of_a_task_holds_its_prompts_by_label() -> None:
    capitals = Task.of([{**row, "tail": "."} for row in CAPITALS], name="capitals")
    text = capitals.corpus("half")
    assert text.labels == ("a", "b")
    assert [document.text for document in text.documents("b")] == [row["prompt"] for row in CAPITALS[2:]]
    whole = next(capitals.corpus(prompts_only=False).documents("capitals"))
    assert whole.text == "The capital of France is Paris."
    ((start, stop),) = whole.spans["response"]
    assert whole.text[start:stop] == " Paris"
    ((start, stop),) = whole.spans["prompt"]
    assert whole.text[start:stop] == CAPITALS[0]["prompt"]


# --- shots and chat ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 4), seed=st.integers(0, 5), name=st.sampled_from(["facts", "culture", "arithmetic"]))
def test_shots_never_hold_the_item_its_group_or_a_repetition(k: int, seed: int, name: str) -> None:
    plain = generated(name, count=40)
    for item, shot in zip(plain, plain.with_shots(k, seed=seed), strict=True):
        *before, last = shot.prompt.split("\n")
        assert last == item.prompt
        assert len(before) == len(set(before)) == k
        used = [next(other for other in plain if other.solved == line) for line in before]
        assert item.prompt not in [other.prompt for other in used]
        if item.group is not None:
            assert item.group not in [other.group for other in used]
        assert (shot.answers, shot.choices, shot.labels) == (item.answers, item.choices, item.labels)


def test_the_shots_of_an_item_do_not_depend_on_the_other_items_asked() -> None:
    plain, source = generated("facts", count=30), generated("culture", count=30)
    assert plain.with_shots(2, source=source).items[:5] == plain.limited(30).with_shots(2, source=source).items[:5]
    one = Task.of(plain.items[4:5]).with_shots(2, source=source)
    assert one[0] == plain.with_shots(2, source=source)[4]
    wordings = Task.of([{**CAPITALS[0], "alternatives": ["France is governed from"]}]).with_shots(1, source=source)[0]
    assert wordings.alternatives[0].split("\n")[0] == wordings.prompt.split("\n")[0]


def test_too_few_shots_are_refused() -> None:
    with pytest.raises(InputError, match="only 3 items can stand before"):
        Task.of(CAPITALS).with_shots(4)
    assert len(Task.of(CAPITALS).with_shots(3)[0].prompt.split("\n")) == 4
    with pytest.raises(InputError, match="0 shots"):
        Task.of(CAPITALS).with_shots(0)


class Chatty:
    """A tokenizer as far as chat templates go."""

    chat_template = "given"

    def apply_chat_template(self, said: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in said) + "<assistant>"


def test_a_chat_frames_the_prompt_and_takes_the_space_from_the_answers() -> None:
    row = {**CAPITALS[0], "choices": [" Paris", " Rome"], "alternatives": ["Paris is"]}
    item = Task.of([row]).with_chat(Chatty(), system="Be brief.")[0]
    assert item.prompt == "<system>Be brief.<user>The capital of France is<assistant>"
    assert item.alternatives == ("<system>Be brief.<user>Paris is<assistant>",)
    assert (item.answers, item.choices) == (("Paris",), ("Paris", "Rome"))
    with pytest.raises(InputError, match="no chat template"):
        Task.of([row]).with_chat(object())


# --- generators and reopening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_every_generator_gives_a_task_without_repetitions(name: str) -> None:
    made = task(f"generate:{name},count=60,seed=2")
    assert 0 < len(made) <= 60
    assert len({item.prompt for item in made}) == len(made)
    assert made.where(split="train").items == made.items
    assert open_task(made.identity).items == made.items


def test_a_count_is_reached_although_generators_repeat_themselves() -> None:
    assert len(generated("arithmetic", count=1500, operations=["addition"])) == 1500
    few = generated("arithmetic")
    drawn = list(GENERATORS["arithmetic"]())
    assert len(few) == len({item.prompt for item in drawn}) <= len(drawn)


def test_a_specification_says_what_the_keywords_say() -> None:
    told = task("generate:facts,split=transfer,language=en+fr,relation=capital,seed=3,count=9", name="capitals")
    assert (
        told.items
        == generated("facts", split="transfer", languages=("en", "fr"), relations=("capital",), seed=3, count=9).items
    )
    assert told.name == "capitals"
    assert told.values("language") == ("en", "fr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generate:poems", "no generator is called 'poems'; there are arithmetic"),
        ("generate:facts,mood=good", "'mood=good'.*relations"),
        ("generate:facts,split", "'split'"),
        ("generate:facts,count=many", "whole number"),
        ("generate:facts,count=0", "at least 1"),
        ("generate:facts,language=en,languages=fr", "twice"),
        ("generate:facts,language=xx", "xx"),
        ("generate:facts,split=nope", "'nope'"),
    ],
)
def test_a_specification_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(text)
    with pytest.raises(InputError, match=r"no colour=; it has"):
        generated("facts", colour="red")


def test_a_task_is_opened_again_step_by_step(tmp_path: Path) -> None:
    capitals = task(write(tmp_path / "capitals.jsonl", CAPITALS))
    steps = (
        capitals.where(half=("a", "b")).with_shots(1, source=generated("facts", count=9)).limited(3).with_chat(Chatty())
    )
    plain = json.loads(json.dumps(steps.identity))
    assert open_task(plain, tokenizer=Chatty()).items == steps.items
    named = capitals.by("half")["a"]
    assert open_task(named.identity).items == named.items
    write(tmp_path / "capitals.jsonl", CAPITALS[:2])
    with pytest.raises(MismatchError, match="'capitals' has other items"):
        open_task(capitals.identity)
    with pytest.raises(InputError, match="in memory"):
        open_task(Task.of(CAPITALS).identity)
    with pytest.raises(DamagedError, match="complete identity"):
        open_task({"name": "x"})


def test_public_functions_are_documented() -> None:
    for thing in (
        Task,
        TaskItem,
        task,
        generated,
        open_task,
        *(value for key, value in vars(Task).items() if key[0] != "_"),
    ):
        if callable(thing) or isinstance(thing, property):
            assert inspect.getdoc(thing), thing
