"""Paired tasks: what they refuse, token positions by hand, files, and the published format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from patchclamp.core.errors import InputError
from patchclamp.data.paired import PairedItem, PairedTask, Pairs

WORDS = ["When", "Mary", "and", "John", "met", ",", "gave", "a", "book", "to", "Anna", "Tom", "red"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a word (with its space), <s> in front of every text, the unknown token for all others."""
    names = ["<unk>", "<pad>", "<s>", *dict.fromkeys([*WORDS, *(" " + word for word in WORDS)])]
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\s\w]+"), "isolated")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<s>")


CLEAN = "When Mary and John met, John gave a book to"
CORRUPT = "When Mary and John met, Mary gave a book to"
SPOTS = {"IO": (5, 9), "S1": (14, 18), "S2": (24, 28), "S1+1": (14, 18)}


def item(**changed: Any) -> PairedItem:
    fields = {
        "clean": CLEAN, "corrupt": CORRUPT, "answer": " Mary", "wrong": " John", "spots": SPOTS,
        "lists": {"names": ((5, 9), (14, 18), (24, 28))}, "labels": {"order": "ABBA"},
    }  # fmt: skip
    return PairedItem(**{**fields, **changed})


def test_tokens_spots_and_answers_are_where_counting_words_puts_them(tokenizer: Any) -> None:
    pairs = PairedTask("t", [item()]).encode(tokenizer)
    words = tokenizer.convert_ids_to_tokens(pairs.clean[0].tolist())
    assert words == ["<s>", "When", " Mary", " and", " John", " met", ",", " John", " gave", " a", " book", " to"]
    assert {name: int(where[0]) for name, where in pairs.spots.items()} == {
        "END": 11,
        "IO": 2,
        "S1": 4,
        "S2": 7,
        "S1+1": 5,
    }
    assert pairs.lists["names"].tolist() == [[2, 4, 7]]
    assert pairs.changed.nonzero().tolist() == [[0, 7]]
    assert tokenizer.convert_ids_to_tokens([int(pairs.answer[0]), int(pairs.wrong[0])]) == [" Mary", " John"]
    assert int(pairs.at("S2+2")[0]) == 9
    assert int(pairs.at("S2-1")[0]) == 6
    assert int(pairs.at("END")[0]) == 11


def test_without_special_tokens_every_position_moves_down(tokenizer: Any) -> None:
    with_bos = PairedTask("t", [item()]).encode(tokenizer)
    without = PairedTask("t", [item()]).encode(tokenizer, special=False)
    assert torch.equal(without.clean[0], with_bos.clean[0, 1:])
    assert int(without.at("S2")[0]) == int(with_bos.at("S2")[0]) - 1


def test_shorter_prompts_are_padded_on_the_right(tokenizer: Any) -> None:
    short = item(clean="John gave Mary a book to", corrupt="Mary gave John a book to", spots={"S1": (0, 4)}, lists={})
    pairs = PairedTask("t", [item(), short]).encode(tokenizer)
    assert pairs.end.tolist() == [11, 6]
    assert pairs.mask.sum(1).tolist() == [12, 7]
    assert (pairs.clean[1, 7:] == tokenizer.pad_token_id).all()
    assert pairs.spots["IO"].tolist() == [2, -1]
    assert pairs.spots["S1"].tolist() == [4, 1]
    assert pairs.lists["names"].tolist() == [[2, 4, 7], [-1, -1, -1]]
    assert not pairs.changed[1, 7:].any()
    only = pairs.rows([1])
    assert only.clean.shape == (1, 7)
    assert only.numbers.tolist() == [1]
    assert [len(batch) for batch in pairs.batches(1)] == [1, 1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corrupt": CORRUPT + " Anna"}, "item 1 .*12 tokens.*13"),
        ({"answer": " Mary Tom"}, "item 1 .*2 tokens"),
        ({"wrong": " Mary."}, "item 1 .*2 tokens"),
        ({"answer": " Zebra"}, "item 1 .*unknown token"),
        ({"spots": {"END+1": (0, 4)}}, "item 1"),
        ({"spots": {"S2+9": (24, 28)}}, "item 1.*token 16"),
    ],
)
def test_what_is_not_aligned_is_refused_with_its_number(tokenizer: Any, changed: dict[str, Any], said: str) -> None:
    task = PairedTask("t", [item(), item(**{"lists": {}, "spots": {}, **changed})])
    with pytest.raises(InputError, match=said):
        if "END+1" in task[1].spots:
            task = PairedTask("t", [item(), item(spots={"END+1": (42, 43)}, lists={})])
        task.encode(tokenizer)


def test_two_answers_that_are_one_token_are_refused() -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, " mary": 2}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+"), "isolated")
    lower = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    task = PairedTask("t", [item(clean="a", corrupt="A", answer=" Mary", wrong=" mary", spots={}, lists={})])
    with pytest.raises(InputError, match=r"item 0 .*same token"):
        task.encode(lower)


@pytest.mark.parametrize(
    "fields",
    [
        {"answer": " John"},
        {"clean": ""},
        {"wrong": 3},
        {"spots": {"S1": (4, 400)}},
        {"spots": {"S1": (9, 9)}},
        {"spots": {"END": (0, 4)}},
        {"spots": {"names": (0, 4)}},
    ],
)
def test_an_item_that_can_not_be_asked_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        item(**fields)


def test_unknown_spots_are_refused_with_the_known_ones(tokenizer: Any) -> None:
    pairs = PairedTask("t", [item()]).encode(tokenizer)
    for name in ("S3", "S3+1", "+1"):
        with pytest.raises(InputError, match="IO, S1"):
            pairs.at(name)
    with pytest.raises(InputError, match="item 0"):
        pairs.at("END+1")
    with pytest.raises(InputError, match="at least 1"):
        list(pairs.batches(0))


def test_tasks_need_items_and_a_name() -> None:
    for name, items in (("t", []), ("", [item()]), ("t", ["text"])):
        with pytest.raises(InputError):
            PairedTask(name, items)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no item"):
        PairedTask("t", [item()]).where(order="BABA")


def test_files_give_the_same_items_back(tmp_path: Path) -> None:
    task = PairedTask("t", [item(), item(spots={}, lists={}, labels={})])
    back = PairedTask.read(task.save(tmp_path / "pairs.jsonl"))
    assert back.items == task.items
    assert back.fingerprint == task.fingerprint
    assert back.name == "pairs"
    assert back.identity["origin"]["kind"] == "file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no pairs"),
        ("[1]\n", "line 1"),
        ('{"clean": "a"}\n', "line 1 has no 'answer'"),
        (
            '\n{"clean": "a", "corrupt": "b", "answer": "c", "wrong": "d", "extra": 1}\n',
            "line 2 has the unknown key 'extra'",
        ),
        ('{"clean": "a", "corrupt": "b", "answer": "c", "wrong": "d", "spots": {"x": [0]}}\n', "line 1"),
        ("{nonsense\n", "line 1 is not valid JSON"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        PairedTask.read(path)
    with pytest.raises(InputError, match="no file"):
        PairedTask.read(tmp_path / "absent.jsonl")


def test_the_published_format_is_two_aligned_lists(tmp_path: Path) -> None:
    clean, corrupt = [[CLEAN, " Mary"], ["a", " Tom"]], [[CORRUPT, " John"], ["b", " Anna"]]
    (tmp_path / "clean.json").write_text(json.dumps(clean))
    (tmp_path / "corrupt.json").write_text(json.dumps(corrupt))
    task = PairedTask.aligned(tmp_path / "clean.json", str(tmp_path / "corrupt.json"))
    assert [(i.clean, i.answer, i.corrupt, i.wrong) for i in task] == [
        (CLEAN, " Mary", CORRUPT, " John"), ("a", " Tom", "b", " Anna"),
    ]  # fmt: skip
    assert task.items == PairedTask.aligned(clean, corrupt).items
    task.save_aligned(tmp_path / "c.json", tmp_path / "d.json")
    assert json.loads((tmp_path / "c.json").read_text()) == clean
    assert json.loads((tmp_path / "d.json").read_text()) == corrupt
    for bad in ([clean, corrupt[:1]], ["x", corrupt], [[["only"]], [["only"]]], [clean, 3]):
        with pytest.raises(InputError):
            PairedTask.aligned(*bad)
    with pytest.raises(InputError, match="pair 0"):
        PairedTask.aligned([["a", " x"]], [["b", " x"]])


def test_an_ordinary_task_holds_both_sides_and_gives_them_back() -> None:
    task = PairedTask("t", [item(), item(clean="a", corrupt="b", spots={}, lists={})])
    both = task.task("both")
    assert [entry.prompt for entry in both] == [CLEAN, CORRUPT, "a", "b"]
    assert [entry.answers[0] for entry in both] == [" Mary", " John", " Mary", " John"]
    back = PairedTask.of_task(both)
    assert [(i.clean, i.corrupt, i.answer, i.wrong, i.labels) for i in back] == [
        (i.clean, i.corrupt, i.answer, i.wrong, i.labels) for i in task
    ]
    assert [entry.labels["side"] for entry in task.task()] == ["clean", "clean"]
    with pytest.raises(InputError, match="no half of a pair"):
        PairedTask.of_task(type(both).of([{"prompt": "x", "answer": " y"}]))
    with pytest.raises(InputError, match="only its clean half"):
        PairedTask.of_task(task.task("clean"))
    with pytest.raises(InputError, match="side"):
        task.task("left")


def test_swapping_twice_gives_the_prompts_back() -> None:
    task = PairedTask("t", [item()])
    assert task.swapped()[0].clean == CORRUPT
    assert task.swapped()[0].answer == " John"
    assert task.swapped().swapped()[0].clean == CLEAN


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=5))
def test_rows_and_batches_only_choose(shapes: list[tuple[int, int]]) -> None:
    width = max(length for length, _ in shapes)
    end = torch.tensor([length - 1 for length, _ in shapes])
    mask = torch.arange(width)[None] <= end[:, None]
    ids = torch.arange(len(shapes) * width).view(len(shapes), width) * mask
    other = torch.where(mask & (torch.arange(width)[None] % 2 == 0), ids + 1, ids)
    numbers = torch.arange(len(shapes))
    pairs = Pairs(ids, other, mask, numbers, numbers + 50, end, {"END": end}, {"m": end[:, None]}, numbers)
    parts = list(pairs.batches(2))
    assert sum(len(part) for part in parts) == len(pairs)
    for part in parts:
        for row, number in enumerate(part.numbers.tolist()):
            length = int(part.end[row]) + 1
            assert torch.equal(part.clean[row, :length], ids[number, :length])
            assert int(part.mask[row].sum()) == length == shapes[number][0]
            assert part.changed[row].sum() == pairs.changed[number].sum()
