"""Opening paired tasks by name, from files and from results; their clean prompts as ordinary generated tasks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data.generate import GENERATORS, TASK_GENERATORS, colored_object_items, ioi_items
from patchclamp.data.generate.ioi import ioi
from patchclamp.data.paired import PairedItem, PairedTask
from patchclamp.data.paired_sources import open_paired, paired
from patchclamp.data.task_sources import open_task, task


def test_a_name_with_keys_makes_the_task() -> None:
    made = paired("generate:ioi,n=30,language=de,corruption=ABC,seed=4")
    assert made.items == ioi(30, None, language="de", corruption="ABC", seed=4).items
    assert len(paired("generate:colored_objects,shots=0")) == 100
    shared = paired("generate:colored_objects,n=5,disjoint_objects=false", name="mine")
    assert shared.name == "mine"
    assert shared.identity["origin"]["arguments"]["disjoint_objects"] is False


def test_files_items_and_tasks_are_opened_too(tmp_path: Path) -> None:
    made = ioi(3, None)
    path = made.save(tmp_path / "pairs.jsonl")
    assert paired(path).items == paired(str(path)).items == made.items
    assert paired(made) is made
    assert paired([made[0], made[1].to_dict()]).items == made.items[:2]


@pytest.mark.parametrize(
    "source",
    [
        "generate:nothing",
        "generate:ioi,words=3",
        "generate:ioi,n=many",
        "generate:ioi,language",
        "generate:colored_objects,disjoint_objects=perhaps",
        "absent.jsonl",
        7,
        [3],
    ],
)
def test_what_can_not_be_opened_is_refused(source: Any) -> None:
    with pytest.raises(InputError):
        paired(source)


def test_an_identity_opens_the_same_task_again(tmp_path: Path) -> None:
    made = paired("generate:ioi,n=20,language=zh,seed=2")
    for one in (made, made.where(order="ABBA"), made.chosen([3, 1]), made.swapped()):
        assert open_paired(one.identity).items == one.items
    saved = PairedTask.read(made.save(tmp_path / "pairs.jsonl"))
    assert open_paired(saved.identity).items == made.items
    ioi(20, None, seed=9).save(tmp_path / "pairs.jsonl")
    with pytest.raises(MismatchError):
        open_paired(saved.identity)
    with pytest.raises(InputError, match="in memory"):
        open_paired(PairedTask("t", [PairedItem("a", "b", "c", "d")]).identity)
    with pytest.raises(DamagedError):
        open_paired({"name": "x"})


def test_clean_prompts_are_an_ordinary_task() -> None:
    found = task("generate:ioi,language=de+ja,count=40")
    assert len(found) == 40
    assert found.values("language") == ("de", "ja")
    assert all(item.right == (True, False) for item in found)
    assert open_task(found.identity).items == found.items
    colors = task("generate:colored_objects,count=30")
    assert set(colors.values("language")) == {"de", "en", "fr", "ja", "ru", "zh"}


def test_heldout_items_are_pairs_of_names_that_the_bundled_model_never_met() -> None:
    from patchclamp.data.generate import binding

    taught = {frozenset((i.labels["io"], i.labels["subject"])) for i in binding(kinds=["ioi"], count=3000)}
    held = list(ioi_items(split="heldout", templates=["demo"], count=60))
    assert {item.split for item in held} == {"heldout"}
    assert not {frozenset((item.labels["io"], item.labels["subject"])) for item in held} & taught
    assert len(list(colored_object_items(templates=["demo"], count=25))) == 25


def test_items_go_on_without_a_count_and_the_seed_decides() -> None:
    def prompts(**how: Any) -> list[str]:
        return [item.prompt for item in islice(ioi_items(count=None, **how), 450)]

    assert prompts(seed=3, languages=["en"]) == prompts(seed=3, languages=["en"]) != prompts(seed=4, languages=["en"])
    for wrong in ({"split": "test"}, {"split": "heldout"}, {"templates": ["x"]}, {"count": -1}):
        with pytest.raises(InputError):
            list(ioi_items(**wrong))


def test_no_curriculum_holds_them() -> None:
    assert not {"ioi", "colored_objects"} & set(GENERATORS)
    assert {"ioi", "colored_objects"} < set(TASK_GENERATORS)
