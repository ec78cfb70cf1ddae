"""Path patching finds exactly the wires of a hand-wired network, and forced attention repairs the task it fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.intervene.planted_circuit import CIRCUIT, asked_candidates, duplicates, planted_model, right_share

from patchclamp.intervene.attention_override import force_attention
from patchclamp.intervene.attention_rows import attention_rows
from patchclamp.intervene.patching_result import Patching
from patchclamp.intervene.path_patching import path_patch


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


def stages(model: Any, pairs: Any, position: str) -> dict[str, Patching]:
    """Final residual at END; queries of what is found there; values, at the position, of what is found there."""
    final = path_patch(model, pairs)
    movers = final.top(k=2)
    queries = path_patch(model, pairs, movers, component="q")
    inhibition = queries.top(k=1)
    return {"final": final, "q": queries, "v": path_patch(model, pairs, inhibition, component="v", position=position)}


@pytest.mark.parametrize("task", ["duplicates", "asked"])
def test_exactly_the_wired_heads_are_found_and_explain_the_flip(model: Any, task: str) -> None:
    pairs, position = (duplicates(), "S2") if task == "duplicates" else (asked_candidates(), "candidates")
    for stage, scores in stages(model, pairs, position).items():
        wired = CIRCUIT[stage]
        assert sorted(scores.top(k=len(wired))) == wired
        others = [
            abs(value) for name, value in zip(scores.parts, scores.scores[:, 0], strict=True) if name not in wired
        ]
        assert max(others) < 1
        assert sum(scores.score(name) for name in wired) == pytest.approx(100, abs=5)
    final = path_patch(model, pairs)
    assert final.score("head.2.0") > 100
    assert final.score("head.2.1") < -20  # the negative mover works against the answer


def test_queries_and_keys_of_other_heads_carry_nothing(model: Any) -> None:
    pairs = duplicates()
    assert np.abs(path_patch(model, pairs, ["head.1.0"], component="q").scores).max() < 1
    assert np.abs(path_patch(model, pairs, ["head.1.0"], component="k", position="S2").scores).max() < 1
    assert np.abs(path_patch(model, pairs, ["head.2.2", "head.2.3"], component="q").scores).max() < 1


def test_patching_clean_values_into_the_corrupted_run_finds_the_same(model: Any) -> None:
    scores = path_patch(model, duplicates(), ["head.2.0", "head.2.1"], component="q", way="denoise")
    assert scores.top(k=1) == ["head.1.0"]
    assert scores.score("head.1.0") == pytest.approx(100, abs=5)


def test_the_inhibition_that_looks_everywhere_guesses_and_forced_attention_repairs_it(model: Any) -> None:
    assert right_share(model, duplicates()) == 1.0
    pairs = asked_candidates(n=120)
    plainly = right_share(model, pairs)
    assert 0.2 < plainly < 0.55  # three candidates
    forced = force_attention(model, ["head.1.0"], pairs.end, pairs.lists["wrong"])
    with forced.applied(model):
        assert right_share(model, pairs) == 1.0
        mover = attention_rows(model, ["head.2.0"], pairs.clean, pairs.mask, pairs.end)[0]
    plain = attention_rows(model, ["head.2.0"], pairs.clean, pairs.mask, pairs.end)[0]
    on_wrong = [rows.gather(1, pairs.lists["wrong"]).sum(1).mean() for rows in (plain, mover)]
    assert on_wrong[0] > 0.6
    assert on_wrong[1] < 0.1
    for seed in range(3):
        with forced.matched_random(seed).applied(model):
            assert right_share(model, pairs) == pytest.approx(plainly, abs=0.02)


def test_attention_read_from_the_planted_heads_is_what_was_wired(model: Any) -> None:
    pairs = duplicates()
    at_s2 = attention_rows(model, ["head.0.0"], pairs.clean, pairs.mask, pairs.spots["S2"])[0]
    first = (pairs.clean[torch.arange(len(pairs)), pairs.spots["S2"]] - 10)[:, None] == pairs.clean
    assert float(at_s2[first].min()) > 0.99
    at_end = attention_rows(model, ["head.1.0"], pairs.clean, pairs.mask, pairs.end)[0]
    assert float(at_end.gather(1, pairs.spots["S2"][:, None]).min()) > 0.99
