"""Kinds of change mix in one list; each is saved under its name; random controls match what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import DamagedError, InputError, ModelError
from patchclamp.core.files import read_json, write_json
from patchclamp.intervene import Direction, Intervention, Interventions, intervention
from patchclamp.intervene.kinds import Change, kind_name, kinds
from patchclamp.models.units import UnitSet

IDS = torch.tensor([[1, 20, 30, 40, 50], [1, 60, 70, 80, 90]])


@dataclass(frozen=True, eq=False, repr=False)
class Colder(Change):
    """Logits divided by a temperature: a kind as a third party would write it."""

    temperature: float
    model: Mapping[str, Any] = field(default_factory=dict)

    def check_model(self, model: Any) -> None:
        pass

    def compiled(self, model: Any) -> Any:
        return [(("logits", model.anatomy.n_layers - 1), lambda seen: seen.values / self.temperature)]

    def lowest_block(self) -> int | None:
        return None

    @property
    def n_units(self) -> int:
        return 1

    def describe(self) -> str:
        return f"logits divided by {self.temperature:g}"

    def to_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Colder:
        return cls(data["temperature"], model)


@pytest.fixture
def colder(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> Colder:
    list(kinds)  # all of the room's own first
    monkeypatch.setattr(kinds, "_entries", dict(kinds._entries))
    kinds.add("colder")(Colder)
    return Colder(0.5, tiny_llama.identity)


def test_a_list_of_several_kinds_is_applied_in_order_saved_and_loaded(
    tiny_llama: Any, colder: Colder, tmp_path: Path
) -> None:
    clamped = intervention(tiny_llama, ["mlp.1.4"], to=3.0)
    both = clamped + colder
    assert both.describe() == f"{clamped.describe()}; then logits divided by 0.5"
    assert both.n_units == 2
    assert both.lowest_block() == 1
    with clamped.applied(tiny_llama):
        wanted = tiny_llama.logits(IDS) / 0.5
    path = both.save(tmp_path / "both.json")
    assert [entry.get("kind") for entry in read_json(path)["interventions"]] == [None, "colder"]
    for items in (both, Interventions.load(path), colder + clamped):
        with items.applied(tiny_llama):
            assert torch.equal(tiny_llama.logits(IDS), wanted)
    assert "colder" in both._repr_html_()
    assert "divided" in repr(colder)


def test_a_file_with_a_kind_nobody_knows_is_refused(tiny_llama: Any, colder: Colder, tmp_path: Path) -> None:
    data = read_json((colder + colder).save(tmp_path / "items.json"))
    data["interventions"][1]["kind"] = "nonsense"
    with pytest.raises(InputError, match=r"nonsense.*colder"):
        Interventions.load(write_json(tmp_path / "items.json", data))
    data["interventions"][1] = {"kind": "colder"}
    with pytest.raises(DamagedError, match="temperature"):
        Interventions.load(write_json(tmp_path / "items.json", data))


def test_what_is_no_kind_has_no_name() -> None:
    with pytest.raises(InputError, match=r"@kinds\.add"):
        kind_name(Colder(1.0))
    with pytest.raises(InputError, match="interventions is needed"):
        Interventions(["mlp.0.1"])  # type: ignore[list-item]


def test_a_kind_without_weights_control_or_scope_says_so(tiny_llama: Any, colder: Colder) -> None:
    with pytest.raises(ModelError, match=r"no weights can hold.*divided"):
        colder.write(tiny_llama)
    with pytest.raises(InputError, match=r"no random control.*divided"):
        (colder + colder).matched_random(0)
    with pytest.raises(InputError, match=r"scope.*divided"):
        (colder + colder).scoped("prompt")


def test_a_random_control_has_the_same_counts_and_values_per_layer(tiny_llama: Any) -> None:
    units = UnitSet.of(tiny_llama, ["mlp.0.1", "mlp.0.5", "mlp.2.3", "head.1.0", "head.1.1"])
    item = intervention(tiny_llama, units, scale=np.arange(5.0))
    control = item.matched_random(3)
    assert isinstance(control.target, UnitSet)
    assert control.operation == "scale"
    assert np.array_equal(control.target.per_layer(), units.per_layer())
    assert _values_per_layer(control) == _values_per_layer(item)
    assert control.matched_random(3).target.names() != units.names()
    assert item.matched_random(3).to_dict() == control.to_dict()


def test_a_random_direction_is_as_long_and_nearly_orthogonal(tiny_llama: Any) -> None:
    vector = np.random.default_rng(0).normal(size=32)
    item = intervention(tiny_llama, Direction.of(tiny_llama, "resid", [0, 1], vector), add=2.0)
    control = item.matched_random(5)
    assert isinstance(control, Intervention)
    assert isinstance(control.target, Direction)
    assert np.allclose(np.linalg.norm(control.target.vectors, axis=1), np.linalg.norm(vector))
    assert np.array_equal(control.target.vectors[0], control.target.vectors[1])
    assert control.value == 2.0
    assert not np.allclose(control.target.vectors[0], vector)


def _values_per_layer(item: Intervention) -> dict[str, list[float]]:
    """ "mlp.0" -> the values given to its units, sorted."""
    found: dict[str, list[float]] = {}
    for unit, value in zip(item.target, item.value, strict=True):  # type: ignore[arg-type]
        found.setdefault(str(unit).rpartition(".")[0], []).append(float(value))
    return {place: sorted(values) for place, values in found.items()}
