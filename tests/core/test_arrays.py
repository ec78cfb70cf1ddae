"""Arrays inside JSON come back exactly, and damaged ones are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchclamp.core.arrays import DTYPES, packed, unpacked
from patchclamp.core.errors import DamagedError


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_array_comes_back_bit_for_bit(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    found = unpacked(json.loads(json.dumps(packed(array))))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable


@pytest.mark.parametrize(
    "damage", [{"base64": "AAA"}, {"base64": "?"}, {"dtype": "object"}, {"shape": [3]}, {"shape": None}]
)
def test_a_damaged_array_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(DamagedError, match="damaged"):
        unpacked({**packed(np.zeros(2)), **damage})


def test_arrays_of_objects_are_not_packed() -> None:
    with pytest.raises(TypeError, match="float64"):
        packed(np.array([object()]))
