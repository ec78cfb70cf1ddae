"""Gradient x activation: closed form, finite differences, and independence of batch, padding and a constant in the logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.tasks import Task
from patchclamp.find.attribution import ablated, attribute, encoded
from patchclamp.find.finding import spans
from patchclamp.models.hooks import Seen, change
from patchclamp.models.load import LanguageModel, load
from patchclamp.models.units import Unit, UnitSet

SHORT, LONG = [5, 9, 17], [7, 8, 33, 41, 6, 9, 50, 12, 4]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def exact(request: pytest.FixtureRequest, tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> LanguageModel:
    """A tiny model in float64: gated MLP and grouped keys, or plain MLP and fused attention."""
    source = {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]
    return load(in_double(copy.deepcopy(source.hf)), tokenizer=source.tokenizer)


def in_double(hf: nn.Module) -> nn.Module:
    """The model in float64 all through: transformers' own RMSNorm would go through float32, too coarse for differences."""
    hf = hf.double()
    for name, module in list(hf.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            hf.set_submodule(name, norm)
    return hf


def values_of(model: LanguageModel, prompts: Any, targets: Any, **how: Any) -> np.ndarray:
    """All rows in the order of the prompts."""
    parts = list(attribute(model, prompts, targets, **how))
    found = np.zeros((len(list(prompts)), parts[0].values.shape[1]))
    for rows, values, _ in parts:
        found[rows] = values.double().numpy()
    return found


def probability(model: LanguageModel, ids: list[int], target: int) -> float:
    return float(model.logits(torch.tensor([ids]))[0, -1].softmax(-1)[target])


def two_classes() -> LanguageModel:
    """Vocabulary of two; logit of token 0 is the only MLP unit's value, which is 2 after token 1; logit of token 1 is 0."""
    config = LlamaConfig(
        vocab_size=2, hidden_size=2, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=8, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).double()
    block = hf.model.layers[0]
    for weight in hf.parameters():
        nn.init.zeros_(weight)
    block.input_layernorm = block.post_attention_layernorm = hf.model.norm = nn.Identity()
    hf.model.embed_tokens.weight[1, 1] = 1.0
    block.mlp.gate_proj.weight[0, 1] = 3.0
    block.mlp.up_proj.weight[0, 1] = 2.0 / float(nn.functional.silu(torch.tensor(3.0, dtype=torch.float64)))
    block.mlp.down_proj.weight[0, 0] = 1.0
    hf.lm_head.weight[0, 0] = 1.0
    return load(hf, check=False)


def test_two_class_softmax_has_the_closed_form() -> None:
    with torch.no_grad():
        model = two_classes()
    ((rows, values, scores),) = attribute(model, [[1]], [0], sites=("mlp",))
    assert rows.tolist() == [0]
    assert float(scores[0]) == pytest.approx(0.880797, abs=1e-6)
    assert float(values[0, 0]) == pytest.approx(0.209987, abs=1e-6)
    assert float(values[0, 0] * scores[0]) == pytest.approx(0.184956, abs=1e-6)
    unit = UnitSet.of(model, ["mlp.0.0"])
    assert ablated(model, [[1]], [0], units=unit)[0, 0] == pytest.approx(0.380797, abs=1e-6)
    ((_, log_values, log_p),) = attribute(model, [[1]], [0], sites=("mlp",), score="log-probability")
    assert float(log_p[0]) == pytest.approx(np.log(0.880797), abs=1e-6)
    assert float(log_values[0, 0]) == pytest.approx(2 * (1 - 0.880797), abs=1e-6)


def test_every_site_agrees_with_central_differences(exact: LanguageModel) -> None:
    """n dP/dn at the last position, by moving the unit there up and down; relative error below 1e-6."""
    ids, target, step = LONG, 11, 1e-3
    sites = tuple(exact.layouts)
    values = values_of(exact, [ids], [target], sites=sites, reduce="last")[0]
    rng, worst = np.random.default_rng(0), 0.0
    for site, span in spans(tuple(exact.layouts.values())).items():
        layout = exact.layouts[site]
        scale = np.abs(values[span]).max()
        assert scale > 0, site
        for position in rng.choice(np.flatnonzero(np.abs(values[span]) > scale / 20), 3):
            unit = layout.unit(int(position))

            def moved(seen: Seen, by: float, index: int = unit.index) -> torch.Tensor:
                new = seen.values.clone()
                new[-1, index] *= 1 + by  # of a head: its whole block
                return new

            def slope(size: float, site: str = site, unit: Unit = unit, moved: Any = moved) -> float:
                p = []
                for by in (size, -size):
                    with change(exact, {(site, unit.layer): lambda seen, by=by: moved(seen, by)}):
                        p.append(probability(exact, ids, target))
                return (p[0] - p[1]) / (2 * size)

            expected = (4 * slope(step / 2) - slope(step)) / 3  # the error of order step^2 cancels
            worst = max(worst, abs(values[span][position] - expected) / abs(expected))
    assert worst < 1e-6


def test_sum_is_the_derivative_of_scaling_a_unit_everywhere(exact: LanguageModel) -> None:
    units = ["mlp.1.3", "q.2.5", "v.0.1", "gate.0.7", "resid.1.4"]
    step = 1e-4
    chosen = UnitSet.of(exact, units)
    sites = tuple(exact.layouts)
    values = values_of(exact, [LONG], [3], sites=sites, reduce="sum")[0]
    starts = {site: span.start for site, span in spans(tuple(exact.layouts.values())).items()}
    for unit in chosen:
        p = []
        for by in (step, -step):

            def scaled(seen: Seen, by: float = by, index: int = unit.index) -> torch.Tensor:
                new = seen.values.clone()
                new[:, index] *= 1 + by
                return new

            with change(exact, {(unit.site, unit.layer): scaled}):
                p.append(probability(exact, LONG, 3))
        mine = values[starts[unit.site] + exact.layouts[unit.site].position(unit)]
        assert mine == pytest.approx((p[0] - p[1]) / (2 * step), rel=1e-5, abs=1e-10)


def test_reductions_are_what_they_say(tiny_llama: LanguageModel) -> None:
    """From the value at each position, which is the last value of the prompt's beginning only for causal reasons: by hand."""
    kept: dict[int, torch.Tensor] = {}

    def keep(seen: Seen) -> torch.Tensor:
        kept[seen.layer] = seen.values.detach().clone().requires_grad_()
        return kept[seen.layer]

    with torch.enable_grad(), change(tiny_llama, {("mlp", 1): keep}):
        log_p = tiny_llama.logits(torch.tensor([LONG]), grad=True)[0, -1].log_softmax(-1)[20]
    (gradient,) = torch.autograd.grad(log_p.exp(), kept[1])
    each = (kept[1] * gradient).detach().double().numpy()  # (seq, width)
    span = tiny_llama.layouts["mlp"].slice(1)
    for reduce, expected in (("max", each.max(0)), ("mean", each.mean(0)), ("sum", each.sum(0)), ("last", each[-1])):
        mine = values_of(tiny_llama, [LONG], [20], sites=("mlp",), reduce=reduce)[0]
        np.testing.assert_allclose(mine[span], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("reduce", ["max", "mean", "sum", "last"])
def test_a_row_does_not_depend_on_its_batch_mates(exact: LanguageModel, reduce: str) -> None:
    sites = ("pre", "q", "k", "v", "mlp", "attn")
    alone = values_of(exact, [SHORT], [3], sites=sites, reduce=reduce)
    together = values_of(exact, [SHORT, LONG, LONG * 3, [30]], [3, 4, 5, 6], sites=sites, reduce=reduce)
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(
        values_of(exact, [LONG * 3, SHORT], [5, 3], sites=sites, reduce=reduce, batch_tokens=4)[1], alone[0], rtol=1e-5
    )


def test_padding_does_not_lift_a_negative_maximum_unless_asked(exact: LanguageModel) -> None:
    alone = values_of(exact, [SHORT], [3], sites=("mlp", "v"))[0]
    negative = alone < 0
    assert negative.any()
    padded = values_of(exact, [SHORT, LONG], [3, 4], sites=("mlp", "v"))
    np.testing.assert_allclose(padded[0][negative], alone[negative], rtol=1e-5)
    reference = values_of(exact, [SHORT, LONG], [3, 4], sites=("mlp", "v"), pad_zero=True)
    assert (reference[0][negative] == 0).all()
    np.testing.assert_allclose(reference[0][~negative], alone[~negative], rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(reference[1], padded[1])  # the longest prompt has no padding


def test_a_constant_added_to_all_logits_changes_nothing(tiny_llama: LanguageModel) -> None:
    hf = copy.deepcopy(tiny_llama.hf).double()
    plain = values_of(load(hf, check=False), [LONG, SHORT], [3, 4])
    head = nn.Linear(hf.lm_head.in_features, hf.lm_head.out_features, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(hf.lm_head.weight)
        head.bias.fill_(7.5)
    hf.lm_head = head
    np.testing.assert_allclose(values_of(load(hf, check=False), [LONG, SHORT], [3, 4]), plain, rtol=1e-6, atol=1e-12)


def test_attribution_ranks_units_as_ablation_does(tiny_llama: LanguageModel) -> None:
    """All 144 MLP neurons of a random model: summed attribution beside the exact change of P when one is silenced."""
    prompts = [LONG, SHORT, [40, 41, 42, 43], [60, 3, 9, 22, 70]]
    targets = [20, 31, 44, 5]
    estimate = values_of(tiny_llama, prompts, targets, sites=("mlp",), reduce="sum").mean(0)
    every = UnitSet.at(tiny_llama, "mlp", np.arange(tiny_llama.layouts["mlp"].total))
    true = ablated(tiny_llama, prompts, targets, units=every).mean(0)
    assert spearmanr(estimate, true).statistic > 0.8
    best = [set(np.argsort(-values)[:14].tolist()) for values in (estimate, true)]
    assert len(best[0] & best[1]) >= 8  # of the best tenth


def test_answers_of_several_tokens_are_scored_as_a_product(exact: LanguageModel) -> None:
    answer = [14, 80, 9]
    ((_, values, scores),) = attribute(exact, [SHORT], [answer], sites=("mlp",), reduce="last", tokens=None)
    p = [probability(exact, [*SHORT, *answer[:at]], token) for at, token in enumerate(answer)]
    assert float(scores[0]) == pytest.approx(np.prod(p), rel=1e-5)
    ((_, first, one),) = attribute(exact, [SHORT], [answer], sites=("mlp",), reduce="last")
    assert float(one[0]) == pytest.approx(p[0], rel=1e-5)
    assert not torch.allclose(values, first)


def test_a_score_of_your_own(exact: LanguageModel) -> None:
    def margin(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.gather(1, targets[:, None])[:, 0] - logits[:, 0]

    ((_, values, scores),) = attribute(exact, [SHORT], [3], sites=("resid",), score=margin, reduce="last")
    logits = exact.logits(torch.tensor([SHORT]))[0, -1]
    assert float(scores[0]) == pytest.approx(float(logits[3] - logits[0]), rel=1e-5)
    assert values.abs().sum() > 0


def test_other_clamps_stay_active_and_nothing_is_left_behind(tiny_llama: LanguageModel) -> None:
    before = tiny_llama.logits(torch.tensor([LONG]))
    plain = values_of(tiny_llama, [LONG], [3])
    with change(tiny_llama, {("mlp", 0): lambda seen: torch.zeros_like(seen.values)}):
        silenced = values_of(tiny_llama, [LONG], [3], sites=("mlp", "pre"))
    assert (silenced[0, : tiny_llama.layouts["mlp"].widths[0]] == 0).all()
    assert torch.equal(tiny_llama.logits(torch.tensor([LONG])), before)
    np.testing.assert_array_equal(values_of(tiny_llama, [LONG], [3]), plain)
    assert all(weight.grad is None for weight in tiny_llama.hf.parameters())
    assert not tiny_llama.hf.training


def test_layers_can_be_attributed_one_by_one(tiny_llama: LanguageModel) -> None:
    whole = values_of(tiny_llama, [LONG], [3], sites=("mlp", "k"))
    parts = sum(values_of(tiny_llama, [LONG], [3], sites=("mlp", "k"), layers=[layer]) for layer in range(3))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-10)


def test_experts_count_zero_where_a_token_was_not_sent() -> None:
    """A random mixture of experts in float64: the sum over positions against central differences."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(3)
    hf = in_double(MixtralForCausalLM(config))
    hf.set_experts_implementation("eager")  # the grouped one knows no float64
    model = load(hf, check=False)
    values = values_of(model, [LONG[:6]], [3], sites=("mlp",), reduce="sum")[0]
    layout = model.layouts["mlp"]
    for position in np.argsort(-np.abs(values))[:3]:
        unit, p = layout.unit(int(position)), []
        column = int(position) - layout.offsets[unit.layer]
        for by in (1e-5, -1e-5):

            def scaled(seen: Seen, by: float = by, column: int = column) -> torch.Tensor:
                new = seen.values.clone()
                if 0 <= column - seen.offset < new.shape[1]:
                    new[:, column - seen.offset] *= 1 + by
                return new

            with change(model, {("mlp", unit.layer): scaled}):
                p.append(probability(model, LONG[:6], 3))
        assert values[position] == pytest.approx((p[0] - p[1]) / 2e-5, rel=1e-5)


def test_half_precision_does_not_underflow(tiny_llama: LanguageModel) -> None:
    half = load(copy.deepcopy(tiny_llama.hf).bfloat16(), check=False)
    logits = half.logits(torch.tensor([LONG]))[0, -1]
    target = int(logits.argmin())
    values = values_of(half, [LONG], [target], sites=("mlp",))
    full = values_of(tiny_llama, [LONG], [target], sites=("mlp",))
    assert np.corrcoef(values[0], full[0])[0, 1] > 0.98


def test_texts_and_tasks_are_read_as_measure_reads_them(tiny_llama: LanguageModel) -> None:
    task = Task.of([{"prompt": "The cat sat on", "answer": " the mat"}, {"prompt": "Two and", "answer": " two"}])
    from_task = values_of(tiny_llama, task, None, sites=("mlp",))
    from_text = values_of(tiny_llama, [item.prompt for item in task], [" the mat", " two"], sites=("mlp",))
    np.testing.assert_array_equal(from_task, from_text)
    ids = [tiny_llama.tokenize(item.prompt) for item in task]
    first = [tiny_llama.tokenizer(item.answers[0], add_special_tokens=False)["input_ids"][0] for item in task]
    np.testing.assert_array_equal(values_of(tiny_llama, ids, first, sites=("mlp",)), from_task)
    assert len(encoded(tiny_llama, task, tokens=None)[0].tokens) > 1


@pytest.mark.parametrize(
    ("prompts", "targets", "how", "message"),
    [
        ([], [], {}, "no prompts"),
        ([[1, 2]], [3, 4], {}, "1 prompts but 2 targets"),
        ([[1, 2]], None, {}, "targets="),
        ([[]], [3], {}, "prompt 0 has 0 tokens"),
        ([[1, 2]], [[]], {}, "0 of its answer"),
        ([[5] * 65], [3], {}, "prompt 0 has 65 tokens"),
        ([[1, 2]], [3], {"sites": ("mlp", "moe")}, "this model's once"),
        ([[1, 2]], [3], {"sites": ()}, "none asked for"),
        ([[1, 2]], [3], {"reduce": "median"}, "reduce='median'"),
        ([[1, 2]], [3], {"score": "loss"}, "score='loss'"),
        ([[1, 2]], [3], {"tokens": 0}, "tokens=0"),
        ([[1, 2]], [[3, 4]], {"score": lambda x, y: x[:, 0], "tokens": None}, "one token per answer"),
    ],
)
def test_bad_input_is_named(tiny_llama: LanguageModel, prompts: Any, targets: Any, how: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(attribute(tiny_llama, prompts, targets, **how))


def test_units_of_another_model_are_refused(tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> None:
    with pytest.raises(MismatchError):
        ablated(tiny_llama, [[1]], [2], units=UnitSet.of(tiny_gpt2, ["mlp.0.0"]))


@given(st.lists(st.lists(st.integers(3, 300), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_any_batching_gives_the_same_values(prompts: list[list[int]], batch_tokens: int) -> None:
    model = next(_shared())
    one = values_of(model, prompts, [7] * len(prompts), sites=("pre", "k"), batch_tokens=1)
    other = values_of(model, prompts, [7] * len(prompts), sites=("pre", "k"), batch_tokens=batch_tokens)
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-9)


def _shared(made: list[LanguageModel] = []) -> Iterator[LanguageModel]:  # noqa: B006
    """One random model for all examples."""
    if not made:
        config = LlamaConfig(
            vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        torch.manual_seed(1)
        made.append(load(LlamaForCausalLM(config).double(), check=False))
    yield made[0]
