"""Path patching equals a plain loop of three forward passes with the definition's hooks, and its identities hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import INSTALLED, KNOWN, small
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.data.paired import Pairs
from patchclamp.intervene.path_patching import path_patch
from patchclamp.models.load import load

SEQ = 7


def pairs_of(vocabulary: int, n: int = 5, seed: int = 0, same: bool = False) -> Pairs:
    """Random pairs of several lengths that differ in one token, at the spot "S2"; padded on the right."""
    rng = np.random.default_rng(seed)
    lengths = [SEQ - number % 3 for number in range(n)]
    clean = torch.zeros(n, SEQ, dtype=torch.int64)
    corrupt, s2 = clean.clone(), torch.zeros(n, dtype=torch.int64)
    for row, length in enumerate(lengths):
        clean[row, :length] = torch.from_numpy(rng.integers(3, vocabulary, length))
        s2[row] = length - 3
        corrupt[row] = clean[row]
        if not same:
            corrupt[row, s2[row]] = 3 + (clean[row, s2[row]] - 2) % (vocabulary - 3)
    end = torch.tensor(lengths) - 1
    mask = torch.arange(SEQ)[None, :] <= end[:, None]
    answer = torch.from_numpy(rng.integers(3, vocabulary, n))
    wrong = 3 + (answer - 3 + 5) % (vocabulary - 3)
    names = torch.stack([s2 - 1, s2], 1)
    names[0, 0] = -1
    return Pairs(clean, corrupt, mask, answer, wrong, end, {"END": end, "S2": s2}, {"names": names}, torch.arange(n))


# --- the definition, by plain torch hooks, one sender and one whole forward pass at a time --------------------------


class Oracle:
    """Clean, corrupted and patched passes with hooks on the output projections and the fused or single projections."""

    def __init__(self, model: Any, pairs: Pairs) -> None:
        self.model, self.hf, self.pairs, self.anatomy = model, model.hf, pairs, model.anatomy
        self.outs = [self.anatomy.module(self.anatomy.site("attn", layer).path) for layer in self.layers]
        self.mlps = [self.anatomy.module(self.anatomy.site("mlp_out", layer).path) for layer in self.layers]
        self.clean, self.corrupt = self.kept(pairs.clean), self.kept(pairs.corrupt)

    @property
    def layers(self) -> range:
        return range(self.anatomy.n_layers)

    def difference(self, logits: Tensor) -> Tensor:
        rows = torch.arange(len(self.pairs))
        last = logits[rows, self.pairs.end]
        return (last[rows, self.pairs.answer] - last[rows, self.pairs.wrong]).double()

    def forward(self, ids: Tensor, handles: list[Any]) -> Tensor:
        try:
            with torch.no_grad():
                return self.hf(input_ids=ids, attention_mask=self.pairs.mask.long()).logits
        finally:
            for handle in handles:
                handle.remove()

    def kept(self, ids: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {"z": {}, "mlp": {}}
        handles = [
            module.register_forward_pre_hook(lambda m, a, layer=layer: found["z"].__setitem__(layer, a[0].clone()))
            for layer, module in enumerate(self.outs)
        ]
        handles += [
            module.register_forward_hook(lambda m, a, o, layer=layer: found["mlp"].__setitem__(layer, o.clone()))
            for layer, module in enumerate(self.mlps)
        ]
        found["ld"] = self.difference(self.forward(ids, handles))
        return found

    def sent(
        self, sender: tuple[str, int, int], chosen: Tensor, freeze_mlps: bool, held: Tensor, read: list[Any]
    ) -> Tensor:
        """One pass with the sender replaced and the rest held; `read` are handles of what records the receivers."""
        kind, at, head = sender
        size = self.outs[0].weight.shape[0 if type(self.outs[0]).__name__ == "Conv1D" else 1] // self.anatomy.n_heads

        def hold(layer: int) -> Callable[..., Any]:
            def hook(module: Any, args: tuple[Any, ...]) -> Any:
                z = torch.where(held[..., None], self.clean["z"][layer], args[0])
                if kind == "head" and layer == at:
                    part = slice(head * size, (head + 1) * size)
                    z = z.clone()
                    z[..., part] = torch.where(chosen[..., None], self.corrupt["z"][layer][..., part], z[..., part])
                return (z, *args[1:])

            return hook

        def hold_mlp(layer: int) -> Callable[..., Any]:
            def hook(module: Any, args: Any, output: Tensor) -> Tensor:
                out = torch.where(held[..., None], self.clean["mlp"][layer], output) if freeze_mlps else output
                if kind == "mlp" and layer == at:
                    out = torch.where(chosen[..., None], self.corrupt["mlp"][layer], out)
                return out

            return hook

        handles = [module.register_forward_pre_hook(hold(layer)) for layer, module in enumerate(self.outs)]
        handles += [module.register_forward_hook(hold_mlp(layer)) for layer, module in enumerate(self.mlps)]
        ids = self.pairs.clean
        if kind == "embed":
            ids = torch.where(chosen, self.pairs.corrupt, self.pairs.clean)
        return self.difference(self.forward(ids, [*read, *handles]))

    def final(self, sender: Any, chosen: Tensor, freeze_mlps: bool, held: Tensor) -> Tensor:
        return self.sent(sender, chosen, freeze_mlps, held, [])

    def through(
        self, sender: Any, receivers: list[tuple[int, int]], site: str, chosen: Tensor, freeze_mlps: bool
    ) -> Tensor:
        """Receivers' q, k or v (all heads of a key-value group are receivers together) read, then put into a clean run."""
        found: dict[int, Tensor] = {}
        places = {layer: self.anatomy.site(site, layer) for layer, _ in receivers}
        reading = [
            self.anatomy.module(place.path).register_forward_hook(
                lambda m, a, o, layer=layer: found.__setitem__(layer, o.clone())
            )
            for layer, place in places.items()
        ]
        self.sent(sender, chosen, freeze_mlps, torch.ones_like(chosen), reading)

        def put(layer: int) -> Callable[..., Any]:
            def hook(module: Any, args: Any, output: Tensor) -> Tensor:
                new, place = output.clone(), places[layer]
                start = place.part[0] if place.part else 0
                heads = self.anatomy.n_heads if site == "q" else place.width // self.anatomy.head_dim
                for at, head in receivers:
                    if at != layer:
                        continue
                    first = start + head * heads // self.anatomy.n_heads * self.anatomy.head_dim
                    part = slice(first, first + self.anatomy.head_dim)
                    new[..., part] = torch.where(chosen[..., None], found[layer][..., part], new[..., part])
                return new

            return hook

        handles = [self.anatomy.module(p.path).register_forward_hook(put(layer)) for layer, p in places.items()]
        return self.difference(self.forward(self.pairs.clean, handles))

    def through_mlps(self, sender: Any, layers: list[int], chosen: Tensor) -> Tensor:
        """What MLPs give after reading the sender, put into a clean run."""
        found: dict[int, Tensor] = {}
        reading = [
            self.mlps[at].register_forward_hook(lambda m, a, o, at=at: found.__setitem__(at, o.clone()))
            for at in layers
        ]
        self.sent(sender, chosen, False, torch.ones_like(chosen), reading)
        handles = [
            self.mlps[at].register_forward_hook(lambda m, a, o, at=at: torch.where(chosen[..., None], found[at], o))
            for at in layers
        ]
        return self.difference(self.forward(self.pairs.clean, handles))


def mask_at(pairs: Pairs, where: str | None) -> Tensor:
    if where is None:
        return pairs.mask
    spots = pairs.spots.get(where)
    found = torch.zeros_like(pairs.mask)
    for row in range(len(pairs)):
        columns = [int(spots[row])] if spots is not None else [int(c) for c in pairs.lists[where][row] if c >= 0]
        found[row, columns] = True
    return found


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"tiny_{request.param}")


SENDERS = ["head.0.1", "head.1.3", "head.2.0", "mlp.0", "mlp.1", "embed"]


def parsed(name: str) -> tuple[str, int, int]:
    parts = name.split(".")
    return (parts[0], *(int(part) for part in parts[1:]), *([0] * (3 - len(parts))))


@pytest.mark.parametrize("freeze_mlps", [False, True])
def test_senders_to_the_final_residual_equal_the_plain_loop(model: Any, freeze_mlps: bool) -> None:
    pairs = pairs_of(320)
    oracle, everywhere = Oracle(model, pairs), torch.ones_like(pairs.mask)
    got = path_patch(model, pairs, senders=SENDERS, position=None, freeze_mlps=freeze_mlps, batch_size=3)
    assert got.settings["columns"] is True
    for number, name in enumerate(SENDERS):
        expected = oracle.final(parsed(name), pairs.mask, freeze_mlps, everywhere)
        np.testing.assert_allclose(got.patched[number, 0], expected.numpy(), atol=2e-4)
    np.testing.assert_allclose(got.base, oracle.clean["ld"].numpy(), atol=1e-4)
    np.testing.assert_allclose(got.source, oracle.corrupt["ld"].numpy(), atol=1e-4)


@pytest.mark.parametrize("where", ["END", "S2", "names", None])
@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_senders_to_queries_keys_and_values_equal_the_plain_loop(model: Any, site: str, where: str | None) -> None:
    pairs = pairs_of(320)
    oracle, chosen = Oracle(model, pairs), mask_at(pairs, where)
    receivers = [(1, 2), (1, 3), (2, 0), (2, 1)]  # whole key-value groups, two layers
    names = [f"head.{layer}.{head}" for layer, head in receivers]
    got = path_patch(
        model, pairs, names, component=site, position=where, senders=SENDERS, batch_size=2, batch_tokens=64
    )
    for number, name in enumerate(SENDERS):
        expected = oracle.through(parsed(name), receivers, site, chosen, False)
        np.testing.assert_allclose(got.patched[number, 0], expected.numpy(), atol=2e-4)


def test_receiving_mlps_equal_the_plain_loop(model: Any) -> None:
    pairs = pairs_of(320)
    oracle, chosen = Oracle(model, pairs), mask_at(pairs, "S2")
    got = path_patch(model, pairs, ["mlp.1", "mlp.2"], position="S2", senders=SENDERS)
    for number, name in enumerate(SENDERS):
        expected = oracle.through_mlps(parsed(name), [1, 2], chosen)
        np.testing.assert_allclose(got.patched[number, 0], expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("site", ["k", "v"])
def test_of_shared_keys_and_values_only_what_the_receiver_reads_is_replaced(tiny_llama: Any, site: str) -> None:
    """Expected: z of the receiver head alone moves; computed with eager attention from q, k and v by plain formulas."""
    pairs, model = pairs_of(320), tiny_llama
    oracle, chosen = Oracle(model, pairs), mask_at(pairs, "S2")
    receiver, sender = (2, 1), ("head", 0, 1)
    got = path_patch(model, pairs, ["head.2.1"], component=site, position="S2", senders=["head.0.1"])
    found: dict[int, Tensor] = {}
    entry = model.anatomy.site(site, 2)
    module = model.anatomy.module(entry.path)
    reading = [module.register_forward_hook(lambda m, a, o: found.__setitem__(2, o.clone()))]
    oracle.sent(sender, chosen, False, torch.ones_like(chosen), reading)
    changed = [module.register_forward_hook(lambda m, a, o: torch.where(chosen[..., None], found[2], o))]
    z: dict[str, Tensor] = {}  # what all heads of the layer give with the group's keys or values replaced
    changed.append(oracle.outs[2].register_forward_pre_hook(lambda m, a: z.__setitem__("all", a[0].clone())))
    oracle.forward(pairs.clean, changed)
    part = slice(receiver[1] * 8, receiver[1] * 8 + 8)

    def only_the_receiver(module: Any, args: Any) -> Any:
        new = args[0].clone()
        new[..., part] = z["all"][..., part]
        return (new, *args[1:])

    expected = oracle.difference(
        oracle.forward(pairs.clean, [oracle.outs[2].register_forward_pre_hook(only_the_receiver)])
    )
    np.testing.assert_allclose(got.patched[0, 0], expected.numpy(), atol=2e-4)
    whole = path_patch(model, pairs, ["head.2.0", "head.2.1"], component=site, position="S2", senders=["head.0.1"])
    assert np.abs(whole.patched - got.patched).max() > 1e-4


def test_attention_held_at_the_position_alone_lets_the_effect_leak(model: Any) -> None:
    pairs = pairs_of(320)
    oracle, chosen = Oracle(model, pairs), mask_at(pairs, "S2")
    exact = path_patch(model, pairs, senders=SENDERS, position="S2")
    assert not exact.effects.any()
    leaky = path_patch(model, pairs, senders=SENDERS, position="S2", freeze="position")
    for number, name in enumerate(SENDERS):
        expected = oracle.final(parsed(name), chosen, False, chosen)
        np.testing.assert_allclose(leaky.patched[number, 0], expected.numpy(), atol=2e-4)
    assert np.abs(leaky.effects).max() > 1e-3


def test_patching_into_the_corrupted_run_is_the_swapped_task(model: Any) -> None:
    pairs = pairs_of(320)
    turned = Pairs(
        pairs.corrupt,
        pairs.clean,
        pairs.mask,
        pairs.answer,
        pairs.wrong,
        pairs.end,
        pairs.spots,
        pairs.lists,
        pairs.numbers,
    )
    here = path_patch(model, pairs, ["head.2.1"], component="q", senders=SENDERS, position=None, way="denoise")
    there = path_patch(model, turned, ["head.2.1"], component="q", senders=SENDERS, position=None)
    np.testing.assert_allclose(here.patched, there.patched, atol=1e-5)
    np.testing.assert_allclose(here.scores, there.scores, atol=1e-3)


# --- identities --------------------------------------------------------------------------------------------------------


def test_equal_runs_have_no_effect_and_no_score(model: Any) -> None:
    pairs = pairs_of(320, same=True)
    for receivers, component in (("final", ""), (["head.2.1"], "v")):
        got = path_patch(model, pairs, receivers, component=component, position=None)
        assert np.abs(got.effects).max() < 1e-5
        with pytest.warns(UserWarning, match="0/0"):
            assert np.isnan(got.scores).all()
        assert np.isnan(got.intervals()).all()


def test_senders_above_the_receivers_have_exactly_no_effect(model: Any) -> None:
    got = path_patch(model, pairs_of(320), ["head.1.1"], component="k", position=None, senders="all")
    for name, effects in zip(got.parts, got.effects, strict=True):
        above = name != "embed" and int(name.split(".")[1]) >= 1
        assert above == (not effects.any()), name


def test_senders_below_any_or_below_all_receivers(model: Any) -> None:
    pairs, names = pairs_of(320), ["head.1.1", "head.2.1"]
    some = path_patch(model, pairs, names, component="v", position=None)
    every = path_patch(model, pairs, names, component="v", position=None, below="all")
    for name, one, other in zip(some.parts, some.effects, every.effects, strict=True):
        layer = int(name.split(".")[1])
        assert (bool(one.any()), bool(other.any())) == (layer < 2, layer < 1), name
        if layer < 1:
            np.testing.assert_allclose(one, other, atol=1e-5)


def linear_model(tokenizer: Any) -> Any:
    """A Llama whose final norm divides by (nearly) the same number everywhere: huge epsilon, gain to match."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, max_position_embeddings=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    hf = LlamaForCausalLM(config)
    hf.model.norm.variance_epsilon = 1e8
    hf.model.norm.weight.data.fill_(1e4)
    return load(hf, tokenizer=tokenizer)


def test_all_heads_mlps_and_the_embedding_together_are_the_corrupted_run_where_the_norm_is_linear(
    tiny_tokenizer: Any,
) -> None:
    pairs = pairs_of(320)
    got = path_patch(linear_model(tiny_tokenizer), pairs, senders="all", position=None, freeze_mlps=True)
    np.testing.assert_allclose(got.effects.sum((0, 1)), got.base - got.source, atol=1e-4)
    assert got.scores.sum() == pytest.approx(100, abs=0.05)


def test_a_final_norm_breaks_additivity(model: Any) -> None:
    got = path_patch(model, pairs_of(320), senders="all", position=None, freeze_mlps=True)
    assert np.abs(got.effects.sum((0, 1)) - (got.base - got.source)).max() > 1e-3


def test_the_closed_form_is_used_where_it_equals_the_forward_passes(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_of(320, n=8)
    how: dict[str, Any] = {"senders": "all", "position": None, "freeze_mlps": True, "batch_size": 3}
    got = path_patch(model, pairs, **how)
    assert got.settings["closed_form"] is True
    monkeypatch.setattr("patchclamp.intervene.path_patching.closed_form_taps", lambda model: [])
    expected = path_patch(model, pairs, **how)
    assert expected.settings["closed_form"] is False
    np.testing.assert_allclose(got.patched, expected.patched, atol=1e-4)


def test_norms_behind_the_sublayers_have_no_closed_form() -> None:
    """In Gemma 2 a block adds the norm of what its heads give, so their sum is not what arrives."""
    model, pairs = load(small("gemma2")), pairs_of(199)
    got = path_patch(model, pairs, senders="all", position=None, freeze_mlps=True, batch_size=2)
    assert got.settings["closed_form"] is False
    assert got.settings["columns"] is True


def test_last_columns_on_a_cache_equal_the_upper_blocks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(320, n=7)
    how: dict[str, Any] = {"component": "k", "position": "S2", "senders": "all", "batch_size": 3}
    got = path_patch(model, pairs, ["head.1.0", "head.2.3"], **how)
    assert got.settings["cache"] is True
    monkeypatch.setattr("patchclamp.intervene.path_patching.tail_of", lambda *given: None)
    expected = path_patch(model, pairs, ["head.1.0", "head.2.3"], **how)
    assert expected.settings["cache"] is False
    np.testing.assert_allclose(got.patched, expected.patched, atol=1e-4)


def test_batches_and_their_size_change_nothing(model: Any) -> None:
    pairs = pairs_of(320, n=7)
    how: dict[str, Any] = {"component": "k", "position": "names", "senders": "all"}
    small = path_patch(model, pairs, ["head.1.0", "head.2.3"], batch_size=2, batch_tokens=1, **how)
    large = path_patch(model, pairs, ["head.1.0", "head.2.3"], batch_size=100, batch_tokens=10**6, **how)
    np.testing.assert_allclose(small.patched, large.patched, atol=1e-5)


def test_models_that_do_not_run_column_by_column_are_run_on_whole_prompts(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = pairs_of(320)
    columns = path_patch(model, pairs, ["head.2.2"], component="q", position="names", senders="all")
    final = path_patch(model, pairs, senders="all", position=None)
    monkeypatch.setattr("patchclamp.intervene.path_patching._reproduces", lambda carrier, base: False)
    whole = path_patch(model, pairs, ["head.2.2"], component="q", position="names", senders="all")
    assert whole.settings["columns"] is False
    np.testing.assert_allclose(whole.patched, columns.patched, atol=1e-5)
    np.testing.assert_allclose(path_patch(model, pairs, senders="all", position=None).patched, final.patched, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "falcon", "gemma2", "qwen3", "phi", "opt", "bloom", "mixtral"])
def test_other_architectures_equal_whole_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel blocks, norms behind the sublayers, soft caps, alibi, learned positions with an offset, experts."""
    torch.manual_seed(0)
    hf = small(name)
    for weight in hf.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model, pairs = load(hf), pairs_of(199)
    how: dict[str, Any] = {"component": "v", "position": "S2", "senders": "all"}
    got = path_patch(model, pairs, ["head.1.2"], **how), path_patch(model, pairs, senders="all")
    assert got[0].settings["columns"], "runs column by column"
    monkeypatch.setattr("patchclamp.intervene.path_patching._reproduces", lambda carrier, base: False)
    monkeypatch.setattr("patchclamp.intervene.path_patching.tail_of", lambda *given: None)
    expected = path_patch(model, pairs, ["head.1.2"], **how), path_patch(model, pairs, senders="all")
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.patched, other.patched, atol=2e-3)
        assert np.abs(one.effects).max() > 1e-3


def test_bfloat16_agrees_with_float32(tiny_llama: Any) -> None:
    import copy

    pairs = pairs_of(320)
    half = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    how: dict[str, Any] = {"component": "v", "position": "names"}
    exact = path_patch(tiny_llama, pairs, ["head.2.2", "head.2.3"], **how)
    rough = path_patch(half, pairs, ["head.2.2", "head.2.3"], **how)
    assert np.corrcoef(exact.effects.reshape(-1), rough.effects.reshape(-1))[0, 1] > 0.95


# --- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_requests_are_refused(model: Any) -> None:
    pairs = pairs_of(320)
    for what, how in (
        ("no receiver", {"receivers": ["neuron.1.2"]}),
        ("has heads 0-3", {"receivers": ["head.1.9"], "component": "q"}),
        ("layer 9", {"receivers": ["head.9.0"], "component": "q"}),
        ("of heads it is one of q, k, v", {"receivers": ["head.1.0"]}),
        ("no components", {"component": "q"}),
        ("not a mixture", {"receivers": ["head.1.0", "mlp.1"], "component": "q"}),
        ("read as wholes", {"receivers": ["mlp.1"], "component": "q"}),
        ("no sender", {"senders": ["x"]}),
        ("no senders", {"senders": []}),
        ("no spot is called 'S9'", {"position": "S9"}),
        ("item 2: the position", {"position": torch.tensor([0, 1, 6, 1, 1])}),
        ("a mask of shape", {"position": torch.ones(2, 2, dtype=torch.bool)}),
        ("one for each of the 5", {"position": torch.tensor([1, 2])}),
        ("way='up'", {"way": "up"}),
        ("freeze='some'", {"freeze": "some"}),
        ("at least 1", {"batch_size": 0}),
    ):
        with pytest.raises(InputError, match=what):
            path_patch(model, pairs, **how)
    pairs.spots["S2"][1] = -1
    with pytest.raises(InputError, match="item 1: the position 'S2' is not there"):
        path_patch(model, pairs, position="S2")
    with pytest.raises(InputError, match="a list given"):
        path_patch(model, [1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "jamba",
        pytest.param(
            "falcon_h1",
            marks=pytest.mark.skipif(INSTALLED < KNOWN, reason="asks for 40 GB of memory in this transformers"),
        ),
    ],
)
def test_layers_whose_mixing_cannot_be_held_are_refused(name: str) -> None:
    """Layers without heads, and layers with a state space beside their heads."""
    with pytest.raises(ModelError, match="can't be told"):
        path_patch(load(small(name), check=False), pairs_of(199))


def test_an_lm_head_behind_a_further_map_is_refused() -> None:
    with pytest.raises(ModelError, match="something else stands between"):
        path_patch(load(small("electra"), check=False), pairs_of(199))


def test_learned_positions_that_only_whole_prompts_get_right(model: Any) -> None:
    """BART numbers positions by the length of its cache: single columns don't reproduce it, whole prompts do."""
    got = path_patch(load(small("bart"), check=False), pairs_of(199), senders="all")
    assert got.settings["columns"] is False
    assert got.effects.any()


def test_nothing_is_left_behind_in_the_model(model: Any) -> None:
    pairs = pairs_of(320)
    before = model.logits(pairs.clean, pairs.mask)
    path_patch(model, pairs, ["head.2.1"], component="v", position="S2")
    assert torch.equal(model.logits(pairs.clean, pairs.mask), before)
