"""What core neurons cost: nothing with all of them, the paper's order on planted topics, only the prompt decides, refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from tests.generate.planted_topics import TOPICS, group, planted_model, text_of

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.core.files import to_json
from patchclamp.generate import core_quality, hot_neurons
from patchclamp.models.units import UnitSet

ASKED: dict[str, Any] = {"token_share": 1.0, "layers": [1], "length": 12, "quiet": True}


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def text() -> Any:
    return pc.corpus({TOPICS[topic]: text_of(topic, 5, seed=1) for topic in range(len(TOPICS))})


def test_all_neurons_cost_nothing_and_a_planted_core_costs_nothing(planted: Any, text: Any) -> None:
    found = core_quality(planted, text, shares=(0.25, 1.0), guides=("prompt", "random", "oracle"), **ASKED)
    for guide, share in (("prompt", 1.0), ("random", 1.0), ("oracle", 1.0)):
        row = found.row(guide, share)
        assert row["added"] == row["divergence"] == 0.0
        assert row["agreement"] == 1.0
    prompt, random = found.row("prompt", 0.25), found.row("random", 0.25)
    assert abs(prompt["added"]) < 1e-6
    assert prompt["agreement"] == 1.0
    assert random["divergence"] > 0.05
    assert prompt["read"] == 0.25
    assert prompt["documents"] == 20
    assert prompt["tokens"] == 20 * 5  # 12 tokens, 6 read, the first of the rest is said by the whole model


def test_the_order_of_the_paper_holds_on_planted_topics(planted: Any, text: Any) -> None:
    guides = {"oracle": "oracle", "prompt": "prompt", "hot": hot_neurons(planted, text, token_share=1.0, quiet=True)}
    found = core_quality(planted, text, shares=(0.25,), guides=guides, **ASKED)
    oracle, prompt, hot = (found.row(guide, 0.25)["divergence"] for guide in guides)
    assert max(oracle, prompt) < 1e-6 < hot


def test_the_numbers_are_those_of_a_plain_formula(planted: Any) -> None:
    line = text_of(0, 1)[0]
    units = UnitSet.of(planted, [f"mlp.1.{index}" for index in group(0)[:3]])
    found = core_quality(planted, pc.corpus(x=[line]), guides={"three": units}, **ASKED)
    ids = torch.tensor([planted.tokenize(line)])
    rest = UnitSet.of(planted, [f"mlp.1.{index}" for index in range(32) if index not in group(0)[:3]])
    plain = planted.logits(ids)[0, 6:-1].log_softmax(-1)
    with pc.clamp(planted, rest, to=0.0):
        now = planted.logits(ids)[0, 6:-1].log_softmax(-1)
    loss = torch.nn.functional.nll_loss(now, ids[0, 7:]).item()
    apart = (plain.exp() * (plain - now)).sum(-1).mean().item()
    (row,) = found.rows
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert row["divergence"] == pytest.approx(apart, rel=1e-4)
    assert row["share"] == pytest.approx(3 / 64)
    assert row["low"] <= row["added"] <= row["high"]
    assert row["steps"] == pytest.approx((plain.exp() * (plain - now)).sum(-1).tolist(), rel=1e-4)


def test_nothing_of_the_scored_part_chooses_neurons(planted: Any) -> None:
    first, second = text_of(0, 1)[0].split()[:6], text_of(1, 1)[0].split()[:6]
    found = core_quality(planted, pc.corpus(x=[" ".join(first + second)]), guides=("prompt",), shares=(0.25,), **ASKED)
    assert found.row("prompt", 0.25)["divergence"] > 0.05  # the prompt's neurons don't serve the other topic


def test_a_curve_is_plain_data_and_draws_itself(planted: Any, text: Any) -> None:
    found = core_quality(planted, text, shares=(0.25, 0.5), guides=("prompt",), **ASKED)
    data = json.loads(to_json(found.to_dict()))
    assert len(data["rows"]) == 2
    assert data["provenance"]["call"] == "generate.core_quality"
    assert found.chart("agreement").to_dict()["mark"]["type"] == "line"
    assert "prompt" in repr(found)
    assert "<table>" in found._repr_html_()
    with pytest.raises(InputError, match="nothing was measured"):
        found.row("prompt", 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 3}, "length=3"),
        ({"length": 1000}, "length=1000"),
        ({"length": 60}, "no document has 30 tokens"),
        ({"prompt": 1.0}, "prompt=1.0"),
        ({"shares": ()}, "nothing to measure"),
        ({"guides": ()}, "nothing to measure"),
    ],
)
def test_measurements_that_cannot_be_made_are_refused(planted: Any, text: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        core_quality(planted, text, **{**ASKED, **arguments})


def test_chunks_change_nothing_but_let_a_refresh_follow_a_change_of_topic(planted: Any) -> None:
    words = [*text_of(0, 1)[0].split()[:6], *text_of(1, 1)[0].split()[:9]]
    text, asked = pc.corpus(x=[" ".join(words)]), {**ASKED, "length": 15, "prompt": 0.4}
    how: dict[str, Any] = {"guides": ("prompt",), "shares": (0.25,), **asked}
    whole, pieces = core_quality(planted, text, **how), core_quality(planted, text, chunk=2, **how)
    assert pieces.row("prompt", 0.25)["added"] == pytest.approx(whole.row("prompt", 0.25)["added"], abs=1e-5)
    fresh = core_quality(planted, text, chunk=2, refresh=2, keep=0.0, **how)
    assert fresh.row("prompt", 0.25)["divergence"] < 0.6 * whole.row("prompt", 0.25)["divergence"]
    with pytest.raises(InputError, match="chunk=0"):
        core_quality(planted, text, chunk=0, **how)


def test_every_tokens_own_core_is_all_a_planted_model_needs(planted: Any, text: Any) -> None:
    whole = core_quality(planted, text, guides=("token core",), shares=(0.1,), **ASKED)
    assert whole.row("token core", 0.1)["divergence"] < 1e-6
    half = core_quality(planted, text, guides=("token core",), shares=(0.1,), **{**ASKED, "token_share": 0.25})
    assert half.row("token core", 0.1)["divergence"] > 0.01
