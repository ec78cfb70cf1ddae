"""Two checkpoints: changes that are known because they were made, and what may not be compared."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.find.counted import recording_of

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.find import Finding, compare, overlap
from patchclamp.find.language import language
from patchclamp.models.units import UnitSet

LABELS = ["en", "fr", "de"]


def checkpoint(
    changes: Any = (),
    *,
    name: str = "before",
    corpus: str = "c0",
    labels: list[str] = LABELS,
    tokens: int = 800,
    rate: float = 0.025,
    **options: Any,
) -> Finding:
    """400 units in 2 layers. Specific: 0-2 en, 10-12 fr, 20-22 de. Related en + fr: 201. General: 300. Faint: 100-159."""
    p = np.zeros((3, 400))
    for at in range(3):
        p[at, at * 10 : at * 10 + 3] = 1
    p[:2, 201] = 1
    p[:, 300] = 1
    p[:, 100:160] = 0.1
    for unit, served in changes:
        p[:, unit] = [label in served for label in LABELS]
    order = [LABELS.index(label) for label in labels]
    return language(
        recording_of(p[order], labels=labels, widths=(200, 200), name=name, corpus=corpus, tokens=tokens),
        rate=rate,
        shuffles=0,
        **options,
    )


# unit 0 loses English to all, unit 10 changes from French to French + German, unit 20 falls silent, unit 250 becomes French
CHANGES = ((0, LABELS), (10, ("fr", "de")), (20, ()), (250, ("fr",)))


def test_changes_are_counted_per_label_layer_and_number_served() -> None:
    found = compare(checkpoint(), checkpoint(CHANGES, name="after", rate=0.0225), trained=["fr"], force=True)
    rows = {row["label"]: row for row in found.languages}
    assert [rows[label]["specific_change"] for label in LABELS] == [-1, 0, -1]
    assert [rows[label]["related_change"] for label in LABELS] == [0, 1, 1]
    assert [row["specific_change"] for row in found.layers] == [-3, 1]
    assert [row["related_change"] for row in found.layers] == [1, 0]
    assert [row["general_change"] for row in found.layers] == [1, 0]
    assert [(row["n"], row["all_change"]) for row in found.served] == [(1, -2), (2, 1), (3, 1)]
    assert found.averages == {
        "trained": {"specific": 0, "related": 1},
        "untrained": {"specific": -1, "related": 0.5},
    }
    assert found.spontaneous == {"specific": False, "related": True}
    kept = {(row["label"], row["kind"]): row for row in found.overlaps}
    assert kept["fr", "specific"]["share"] == pytest.approx(2 / 3)
    assert kept["fr", "specific"]["jaccard"] == pytest.approx(2 / 4)
    assert kept["en", "related"] | {"share": 1.0, "jaccard": 1.0} == kept["en", "related"]
    assert kept["de", "related"]["share"] is None


def test_the_same_checkpoint_has_not_changed() -> None:
    found = compare(checkpoint(), checkpoint(), trained=["en"])
    assert all(row["specific_change"] == row["related_change"] == 0 for row in found.languages)
    assert all(row["share"] in (1.0, None) for row in found.overlaps)
    assert found.spontaneous == {"specific": False, "related": False}
    assert found.notes == ()


def test_label_order_does_not_matter() -> None:
    plain = compare(checkpoint(), checkpoint(CHANGES, name="after"))
    turned = compare(checkpoint(), checkpoint(CHANGES, name="after", labels=["de", "en", "fr"]))
    assert plain.languages == turned.languages
    assert plain.overlaps == turned.overlaps


def test_without_trained_labels_all_count_as_untrained() -> None:
    found = compare(checkpoint(), checkpoint(CHANGES, name="after"))
    assert found.averages["trained"] is None
    assert found.spontaneous == {"specific": None, "related": None}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"corpus": "c1"}, "texts differ"),
        ({"tokens": 1600}, "token totals differ"),
        ({"rate": 0.05}, "rate differs"),
        ({"method": "lape"}, "methods differ"),
    ],
)
def test_unlike_findings_are_refused_unless_forced(other: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        compare(checkpoint(), checkpoint(**other))
    forced = compare(checkpoint(), checkpoint(**other), force=True)
    assert any(message in note for note in forced.notes)


def test_unknown_labels_and_other_shapes_are_refused_even_so() -> None:
    with pytest.raises(InputError, match="'xx'"):
        compare(checkpoint(), checkpoint(), trained=["xx"])
    p = np.zeros((3, 300))
    p[0, 0] = 1
    other = language(recording_of(p, labels=LABELS), shuffles=0)
    with pytest.raises(MismatchError, match="architecture"):
        compare(checkpoint(), other, force=True)
    renamed = language(recording_of(np.zeros((3, 400)), labels=["en", "fr", "it"], widths=(200, 200)), shuffles=0)
    with pytest.raises(MismatchError, match="labels differ"):
        compare(checkpoint(), renamed, force=True)


def test_findings_from_files_compare_alike(tmp_path: Path) -> None:
    before, after = checkpoint(), checkpoint(CHANGES, name="after")
    expected = compare(before, after).to_dict()
    for scores in (True, False):
        files = [
            Finding.load(found.save(tmp_path / f"{at}-{scores}.json", scores=scores))
            for at, found in enumerate((before, after))
        ]
        assert compare(*files).to_dict() == expected


def test_overlap_of_sets_across_checkpoints() -> None:
    before, after = checkpoint().sets["fr"], checkpoint(CHANGES, name="after").sets["fr"]
    found = overlap(before, after)
    names = set(before.names()), set(after.names())
    assert found.shared == len(names[0] & names[1])
    assert found.share == len(names[0] & names[1]) / len(names[0])
    assert found.jaccard == len(names[0] & names[1]) / len(names[0] | names[1])
    empty = UnitSet.at(before.model, "mlp", [])
    assert overlap(empty, after).share is None
    assert overlap(empty, empty).jaccard is None
    other = UnitSet.at({**before.model, "sites": {"mlp": {"widths": [400], "experts": [0]}}}, "mlp", [3])
    with pytest.raises(MismatchError, match="other mlp units"):
        overlap(before, other)


def test_it_shows_itself() -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(compare(checkpoint(), checkpoint(CHANGES, name="after"), trained=["fr"]))
    text = console.export_text()
    assert "before" in text
    assert "untrained: " in text
