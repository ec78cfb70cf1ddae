"""The layer stages: the rule on shapes whose borders can be worked out by hand."""

from __future__ import annotations

from patchclamp.find.language_stages import STAGES, divide

NONE = [0] * 10


def test_the_shape_of_the_paper_gives_four_stages() -> None:
    selective = [30, 30, 20, 0, 0, 0, 0, 0, 20, 30, 5, 5]
    general = [5, 5, 10, 20, 20, 20, 20, 20, 10, 5, 1, 60]
    found = divide(selective, [0] * 12, general)
    # smoothed f of layers 3 and 7 is 20 / 3, against a maximum of 30: below a quarter; layers 2 and 8 are above
    assert found.layers["understanding"] == (0, 2)
    assert found.layers["shared reasoning"] == (3, 7)
    # g smoothed over layers 8.. is (20+10+5)/3, 16/3, 66/3, 61/2: the minimum is layer 9
    assert found.layers["output transformation"] == (8, 9)
    assert found.layers["vocabulary output"] == (10, 11)
    assert found.notes == ()
    assert [found.of(layer) for layer in (0, 5, 9, 11)] == list(STAGES)


def test_stages_are_not_forced() -> None:
    flat = divide([5] * 10, NONE, [1] * 10)
    assert set(flat.layers.values()) == {None}
    assert "no stages" in flat.notes[0]
    nothing = divide(NONE, NONE, [1] * 10)
    assert set(nothing.layers.values()) == {None}
    late = divide([0, 0, 0, 0, 0, 9, 9], [0] * 7, [1] * 7)
    assert late.layers["understanding"] is None
    assert late.layers["shared reasoning"] == (0, 3)
    assert any("understanding" in note for note in late.notes)


def test_without_general_neurons_the_last_border_is_not_invented() -> None:
    found = divide([9, 9, 0, 0, 0, 0, 9, 9], [0] * 8, [0] * 8)
    # smoothed f is 9 6 3 0 0 3 6 9 of 36: only layers 3 and 4 lie below a quarter of the maximum
    assert found.layers["output transformation"] == (5, 7)
    assert found.layers["vocabulary output"] is None
    assert any("can't be told apart" in note for note in found.notes)


def test_smoothing_uses_the_layers_that_exist() -> None:
    assert divide([4], [0], [2]).selective == (1.0,)
    two = divide([3, 1], [0, 0], [0, 1])
    assert two.selective == (0.5, 0.5)
    assert divide([3, 0, 3], [0] * 3, [0] * 3).selective == (0.25, 1 / 3, 0.25)


def test_every_layer_is_in_at_most_one_stage() -> None:
    found = divide([9, 9, 0, 0, 0, 0, 9, 9, 3], [0] * 9, [1, 1, 5, 5, 5, 5, 1, 1, 9])
    covered = [layer for span in found.layers.values() if span for layer in range(span[0], span[1] + 1)]
    assert covered == list(range(9))
