"""Names, layouts and set algebra of units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.models.units import Layout, Unit, UnitSet, load_sets, save_sets

MODEL = {
    "name": "m",
    "fingerprint": "f0",
    "sites": {"mlp": {"widths": [5, 0, 6], "experts": [0, 0, 3]}, "attn": {"widths": [4, 4, 4], "experts": [0, 0, 0]}},
}
POSITIONS = st.sets(st.integers(0, 10), max_size=11)
FEW = settings(max_examples=25, deadline=None)


def mlp(positions: set[int], scores: bool = False) -> UnitSet:
    where = sorted(positions)
    return UnitSet.at(MODEL, "mlp", where, np.array(where, dtype=float) * 2 if scores else None)


@FEW
@given(st.integers(0, 10))
def test_position_and_unit_are_inverse(position: int) -> None:
    layout = Layout.from_dict({"site": "mlp", **MODEL["sites"]["mlp"]})  # type: ignore[index,dict-item]
    unit = layout.unit(position)
    assert layout.position(unit) == position
    assert layout.position(Unit.parse(str(unit))) == position
    assert layout.names([position]) == [str(unit)]


@FEW
@given(POSITIONS, POSITIONS)
def test_set_algebra_is_that_of_sets(a: set[int], b: set[int]) -> None:
    for ours, theirs in ((mlp(a) | mlp(b), a | b), (mlp(a) & mlp(b), a & b), (mlp(a) - mlp(b), a - b)):
        assert ours == mlp(theirs)
        assert len(ours) == len(theirs)


@FEW
@given(POSITIONS, st.integers(0, 2**31))
def test_matched_random_has_as_many_units_in_every_layer(a: set[int], seed: int) -> None:
    drawn = mlp(a).matched_random(seed)
    assert drawn.per_layer().tolist() == mlp(a).per_layer().tolist()
    assert drawn == mlp(a).matched_random(seed)
    if len([p for p in a if p < 5]) <= 2 and len([p for p in a if p >= 5]) <= 3:
        assert not len(drawn & mlp(a))


@FEW
@given(POSITIONS)
def test_saving_and_loading_gives_the_same_set(a: set[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in ("set.json", "set.parquet"):
            mlp(a, scores=True).save(Path(folder) / name)
            back = UnitSet.load(Path(folder) / name, model=MODEL)
            assert back == mlp(a)
            if a:
                assert back.score_list() == mlp(a, scores=True).score_list()


@FEW
@given(POSITIONS, st.integers(0, 11))
def test_top_takes_the_highest_scores(a: set[int], k: int) -> None:
    assert mlp(a, scores=True).top(k) == mlp(set(sorted(a)[len(a) - min(k, len(a)) :]))


def test_units_of_experts_are_named_by_expert() -> None:
    units = UnitSet.of(MODEL, ["mlp.2.e1.0", "mlp.0.4", "attn.1.3"])
    assert units.names() == ["attn.1.3", "mlp.0.4", "mlp.2.e1.0"]
    assert units.positions["mlp"].tolist() == [4, 7]
    assert "mlp.2.e1.0" in units
    assert units.layers([2]).names() == ["mlp.2.e1.0"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlp.0.5", "units 0-4"),
        ("mlp.1.0", "no such units"),
        ("mlp.3.0", "0-2"),
        ("mlp.2.3", "e0"),
        ("mlp.2.e3.0", "experts 0-2"),
        ("resid.0.0", "no site"),
        ("mlp.x", "unit name"),
        ("nose.0.1", "no site"),
    ],
)
def test_a_unit_that_the_model_lacks_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        UnitSet.of(MODEL, [name])


def test_sets_of_different_models_do_not_mix() -> None:
    other = UnitSet.at({**MODEL, "fingerprint": "f1"}, "mlp", [1])
    with pytest.raises(MismatchError, match="belong to"):
        mlp({1}) | other


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"format": "else"}')
    with pytest.raises(DamagedError, match="format"):
        load_sets(path)
    save_sets(path, {"a": mlp({1}), "b": mlp({2})})
    assert list(load_sets(path)) == ["a", "b"]
    with pytest.raises(InputError, match="say which"):
        UnitSet.load(path)
