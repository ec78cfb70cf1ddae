"""`find_anatomy`: reads blocks, sites, heads, experts and LM head of a `PreTrainedModel` from its tree and shapes.

Blocks are the members of the outermost ModuleList with linear maps that has `num_hidden_layers` members. In a block,
a down projection is a linear map w -> d_model outside attention that has an up projection d_model -> w (or 2 w, gate
and up in one) beside it; fused experts are 3-D parameters; the attention output projection is the last linear map of
the attention module that leads back to d_model. Which projection is gated is found by running the MLP once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from patchclamp.core.errors import ModelError
from patchclamp.models.anatomy import Anatomy, SitePath, linear_shape
from patchclamp.models.attention import queries_keys_values
from patchclamp.models.gating import gate_and_up
from patchclamp.models.rows import ROWS

ATTENTION = re.compile(r"attn|attention|self_att|mlstm", re.IGNORECASE)
MIXING = re.compile(r"attn|attention|self_att|mlstm|mamba|conv|temporal", re.IGNORECASE)
ASIDE = re.compile(
    r"adapter|router|indexer|norm|laurel|per_layer|altup|_hc|compress|cross|encoder_attn|predictor|\bgate\."
)
DOWN = (
    "down_proj",
    "fc2",
    "c_proj",
    "dense_4h_to_h",
    "w2",
    "wo",
    "Wo",
    "fc_out",
    "lin2",
    "proj_down",
    "w_out",
    "output.dense",
)
ATTENTION_OUT = (
    "o_proj",
    "out_proj",
    "c_proj",
    "dense",
    "Wo",
    "wo",
    "attention_out",
    "out_lin",
    "o_b_proj",
    "output",
    "linear",
)
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layer_norm")
NOT_OUT = re.compile(
    r"(^|\.)(q|k|v|kv|g|b|a|query|key|value|qkv|c_attn|wq|wk|wv|Wqkv|gate|f)(_|$|\.)|gate|query|key_|value_",
    re.IGNORECASE,
)
OTHER_TOWERS = re.compile(r"vision|visual|audio|image|speech|patcher|(^|\.)encoder\.(?=.*decoder)")


def find_anatomy(hf: Any) -> Anatomy:
    """Read the anatomy of a `PreTrainedModel` from its module tree and shapes.

    Raises ModelError where it can't be read, saying what was looked for and how to add a row.
    """
    row: dict[str, Any] = ROWS.get(hf.config.model_type, {})
    if "refuse" in row:
        raise ModelError(f"a {hf.config.model_type} model can't be read: {row['refuse']}")
    config = hf.config.get_text_config(decoder=True)
    d_model = _first_int(config, "hidden_size", "d_model", "n_embd")
    blocks = _blocks(hf, row, getattr(config, "num_hidden_layers", None))
    read = [_Block(hf, path, d_model, config) for path in blocks]
    sites: dict[str, tuple[SitePath | None, ...]] = {}
    for site in ("mlp", "gate", "up", "pre", "attn", "mlp_out", "attn_out"):
        sites[site] = tuple(block.sites.get(site) for block in read)
    sites["resid"] = tuple(SitePath(path, "output", _resid_width(config, d_model)) for path in blocks)
    for site, (pattern, where) in row.get("sites", {}).items():
        paths = [pattern.format(number) for number in range(len(blocks))]
        sites[site] = tuple(SitePath(path, where, _width(hf.get_submodule(path), where, d_model)) for path in paths)
    heads = tuple(_heads(hf, entry, config) for entry in sites["attn"])
    notes = [note for block in read for note in block.notes]
    sites |= _projections(hf, blocks, sites["attn"], heads, row, notes)
    sites = {site: found for site, found in sites.items() if any(found) and site not in row.get("without", ())}
    embed, embedding = _embedding(hf)
    if embed is not None:
        sites["embed"] = (SitePath(embed, "output", embedding.weight.shape[1]), *(None,) * (len(blocks) - 1))
    head_widths = [
        e.total_width // n for e, n in zip(sites.get("attn", ()), heads, strict=False) if e is not None and n
    ]
    output = hf.get_output_embeddings()
    n_heads = _first_int(config, "num_attention_heads", "num_heads", "n_head", default=0)
    return Anatomy(
        model_type=hf.config.model_type,
        trunk=_trunk(hf, blocks[0]),
        blocks=blocks,
        sites=sites,
        d_model=d_model,
        n_layers=len(blocks),
        n_heads=n_heads,
        n_kv_heads=_first_int(config, "num_key_value_heads", default=n_heads),
        head_dim=head_widths[0] if head_widths else 0,
        heads=heads,
        embed=embed,
        final_norm=_final_norm(hf, blocks[0]),
        lm_head=_path_of(hf, output),
        tied=output is not None and embedding is not None and getattr(output, "weight", None) is embedding.weight,
        forms=tuple(block.form for block in read),
        soft_cap=_first_float(config, "final_logit_softcapping", "output_logit_soft_cap"),
        logit_scale=_logit_scale(config),
        time_first=row.get("time_first", False),
        pads=row.get("pads", False),
        notes=tuple(notes),
        root=hf,
    )


def _projections(
    hf: nn.Module,
    blocks: list[str],
    outs: tuple[SitePath | None, ...],
    heads: tuple[int, ...],
    row: dict[str, Any],
    notes: list[str],
) -> dict[str, tuple[SitePath | None, ...]]:
    """Sites `q`, `k`, `v` of all layers; what is missing is added to the notes."""
    found: dict[str, list[SitePath | None]] = {site: [None] * len(outs) for site in ("q", "k", "v")}
    for layer, out in enumerate(outs):
        if out is None:
            notes.append(f"{blocks[layer]}: no q, k and v: no attention output projection was found")
            continue
        each = [queries_keys_values(hf, place, heads[layer] // len(out.places), row) for place in out.places]
        for site, entries in found.items():
            places = [sites[site] for sites, _ in each if site in sites]
            if len(places) == len(each):
                entries[layer] = _joined(places)
        notes += [note for _, note in each if note]
    return {site: tuple(entries) for site, entries in found.items()}


def linears(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """(path, inputs, outputs) of every linear map in a module, in order of definition."""
    for path, child in module.named_modules():
        shape = linear_shape(child)
        if shape is not None:
            yield path, *shape


class _Block:
    """What was found in one block: sites, the form of its MLP, notes on what was left out."""

    def __init__(self, hf: nn.Module, path: str, d_model: int, config: Any) -> None:
        self.hf, self.path, self.d_model = hf, path, d_model
        self.module = hf.get_submodule(path)
        self.maps = [item for item in linears(self.module) if not ASIDE.search(item[0])]
        self.sites: dict[str, SitePath] = {}
        self.notes: list[str] = []
        self.form = "none"
        self._read_mlp()
        self._read_attention()

    def _full(self, path: str) -> str:
        return f"{self.path}.{path}" if path else self.path

    def _read_mlp(self) -> None:
        outside = [item for item in self.maps if not self._mixes(item[0])]
        dense = [SitePath(self._full(path), "input", width) for path, width in _downs(outside, self.d_model)]
        fused = list(self._fused())
        if fused:
            self._place_experts(fused, dense)
        elif dense:
            self.form = "plain"
            self.sites["mlp"] = _joined(dense)
            self.sites["mlp_out"] = SitePath(dense[-1].path, "output", self.d_model)
            if len(dense) == 1:
                self._read_gate(dense[0], outside)

    def _place_experts(self, fused: list[SitePath], dense: list[SitePath]) -> None:
        self.form = "experts"
        each = fused[0].width // fused[0].experts
        kept = list(fused[:1])
        for place in (*fused[1:], *dense):
            if place.width % each or (place.experts and place.width // place.experts != each):
                self.notes.append(
                    f"{place.path}: its width {place.width} is no multiple of the experts' {each}; left out"
                )
            else:
                kept.append(place)
        self.sites["mlp"] = _joined(kept)
        owner = fused[0].path
        holder = _parent(owner) if owner.count(".") > self.path.count(".") + 1 else owner
        self.sites["mlp_out"] = SitePath(holder, "output", self.d_model)

    def _read_gate(self, down: SitePath, outside: list[tuple[str, int, int]]) -> None:
        inner = down.path.removeprefix(self.path + ".")
        ups = [(self._full(path), outputs) for path, outputs in _ups(inner, down.width, outside, self.d_model)]
        if len(ups) == 1 and ups[0][1] == down.width:
            self.sites["gate"] = down
            self.sites["up"] = self.sites["pre"] = SitePath(ups[0][0], "output", down.width)
            return
        self.form = "gated"
        found, note = gate_and_up(self.hf, down, [path for path, _ in ups], self.d_model)
        self.notes += [note] if note else []
        self.sites |= found

    def _fused(self) -> Iterator[SitePath]:
        """Modules whose own parameters hold the down projections of all experts, routed ones first."""
        for path, module in self.module.named_modules():
            if ASIDE.search(path) or self._mixes(path):
                continue
            found = fused_down(module, self.d_model)
            if found is not None:
                name, experts, width, transposed = found
                owner, weight = (
                    (_parent(path), f"{path.rpartition('.')[2]}.{name}") if name in ("weight", "w2") else (path, name)
                )
                where = self._full(owner)
                yield SitePath(where, "experts", experts * width, experts=experts, weight=weight, transposed=transposed)

    def _mixes(self, path: str) -> bool:
        """Whether a path within the block lies in a module that mixes positions."""
        if MIXING.search(path):
            return True
        child = path.partition(".")[0]
        if child not in ("mixer", "block", "temporal_block"):
            return False
        inner = list(self.module.get_submodule(child).named_modules())
        return any(isinstance(m, nn.Conv1d) or name.endswith(("q_proj", "qkv_proj")) for name, m in inner)

    def _read_attention(self) -> None:
        inside = [item for item in self.maps if self._attends(item[0])]
        found = []
        for holder in dict.fromkeys(_holder(path) for path, _, _ in inside):
            outs = [
                item
                for item in inside
                if _holder(item[0]) == holder
                and item[2] == self.d_model
                and not NOT_OUT.search(item[0].removeprefix(holder))
            ]
            named = [item for item in outs if _leaf(item[0]) in ATTENTION_OUT]
            found += (named or outs)[-1:]
        if found:
            self.sites["attn"] = _joined([SitePath(self._full(path), "input", width) for path, width, _ in found])
            self.sites["attn_out"] = SitePath(self._full(found[-1][0]), "output", self.d_model)

    def _attends(self, path: str) -> bool:
        if ATTENTION.search(path):
            return True
        child = path.partition(".")[0]
        if child not in ("mixer", "block", "temporal_block"):
            return False
        return any(
            name.endswith(("q_proj", "qkv_proj")) for name, _ in self.module.get_submodule(child).named_modules()
        )


def fused_down(module: nn.Module, d_model: int) -> tuple[str, int, int, bool] | None:
    """(parameter, experts, width of one, whether stored [experts, width, d_model]) if a module holds fused experts."""
    own = dict(module.named_parameters(recurse=False))
    down, up = own.get("down_proj"), own.get("gate_up_proj", own.get("up_proj"))
    if down is not None and up is not None and down.dim() == 3:
        # [experts, d_model, width] unless the up projection shows that matrices are stored the other way round
        transposed = (
            up.shape[1] == d_model and up.shape[2] in (down.shape[1], 2 * down.shape[1]) and down.shape[2] == d_model
        )
        return "down_proj", down.shape[0], down.shape[1 if transposed else 2], transposed
    experts = getattr(module, "moe_num_experts", None)
    if isinstance(experts, int) and "w2" in own and own["w2"].dim() == 2 and own["w2"].shape[1] == d_model:
        return "w2", experts, own["w2"].shape[0] // experts, True
    weight = own.get("weight")
    stacked = weight is not None and weight.dim() == 3 and hasattr(module, "num_experts")
    if weight is not None and stacked and weight.shape[1] == d_model and getattr(module, "input_size", 0) != d_model:
        return "weight", weight.shape[0], weight.shape[2], False
    return None


def _downs(maps: list[tuple[str, int, int]], d_model: int) -> list[tuple[str, int]]:
    """(path, width) of the down projections among linear maps: one per parent module."""
    found: dict[str, list[tuple[str, int]]] = {}
    for path, inputs, outputs in maps:
        if outputs == d_model and _ups(path, inputs, maps, d_model):
            found.setdefault(_parent(path), []).append((path, inputs))
    chosen = []
    for candidates in found.values():
        named = [item for item in candidates if item[0].endswith(DOWN)]
        chosen.append((named or candidates)[-1])
    return chosen


def _ups(down: str, width: int, maps: list[tuple[str, int, int]], d_model: int) -> list[tuple[str, int]]:
    """(path, outputs) of the linear maps d_model -> width or 2 width that can feed a down projection."""
    fitting = [
        (path, outputs)
        for path, inputs, outputs in maps
        if path != down and inputs == d_model and outputs in (width, 2 * width)
    ]
    parent = _parent(down)
    for prefix in (parent, _parent(parent)):
        near = [item for item in fitting if not prefix or item[0].startswith(prefix + ".")]
        if near:
            return near
    return []


def _joined(places: list[SitePath]) -> SitePath:
    """One SitePath of several places, units one after another."""
    placed, offset = [], 0
    for place in places:
        placed.append(replace(place, offset=offset))
        offset += place.width
    return replace(placed[0], also=tuple(placed[1:]))


def _blocks(hf: nn.Module, row: dict[str, Any], expected: int | None) -> list[str]:
    if "blocks" in row:
        pattern = row["blocks"]
        return [pattern.format(number) for number in range(len(hf.get_submodule(_parent(pattern))))]  # type: ignore[arg-type]
    lists = [
        (path, module)
        for path, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not OTHER_TOWERS.search(path)
    ]
    holding = [(path, module) for path, module in lists if any(True for _ in linears(module[0]))]
    outer = [item for item in holding if not any(item[0].startswith(path + ".") for path, _ in holding)]
    if not outer:
        raise ModelError(
            f"can't read {type(hf).__name__}: blocks were looked for (a ModuleList whose members hold linear maps) and none "
            "was found; a row for this type in patchclamp/models/rows.py can name them"
        )
    path, module = max(outer, key=lambda item: (len(item[1]) == expected, len(item[1])))
    return [f"{path}.{number}" for number in range(len(module))]


def _trunk(hf: nn.Module, block: str) -> str:
    """Path of the smallest module around the blocks that can be called with token ids."""
    path = _parent(block)
    while path:
        path = _parent(path)
        if "input_ids" in inspect.signature(hf.get_submodule(path).forward).parameters:
            return path
    raise ModelError(f"can't read {type(hf).__name__}: no module around {block} takes input_ids")


def _heads(hf: nn.Module, entry: SitePath | None, config: Any) -> int:
    """Heads of a layer's attention, by the attention module's own attributes, else by the configuration."""
    if entry is None or entry.path.endswith("o_b_proj"):
        return 0
    count = 0
    for place in entry.places:
        holder = hf.get_submodule(_parent(place.path))
        own = [
            getattr(holder, name, None)
            for name in ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_v_heads")
        ]
        known = [number for number in own if isinstance(number, int)]
        each = known[0] if known else _first_int(config, "num_attention_heads", "num_heads", "n_head", default=0)
        if not each or place.width % each:
            return 0
        count += each
    return count


def _embedding(hf: Any) -> tuple[str | None, Any]:
    try:
        module = hf.get_input_embeddings()
    except NotImplementedError:
        return None, None
    if getattr(module, "weight", None) is None or module.weight.dim() != 2:
        return None, None
    return _path_of(hf, module), module


def _final_norm(hf: nn.Module, block: str) -> str | None:
    """The norm after the blocks: the next one defined after them, else one beside them whose name says so."""
    owner, after, named = _parent(_parent(block)), False, None
    for name, child in hf.get_submodule(owner).named_children():
        path = f"{owner}.{name}" if owner else name
        is_norm = "norm" in type(child).__name__.lower()
        if after and is_norm:
            return path
        named = path if is_norm and name in FINAL_NORMS else named
        after = after or path == _parent(block)
    return named


def _logit_scale(config: Any) -> float:
    times = _first_float(config, "logit_scale", "lm_head_multiplier") or 1.0
    return times / (_first_float(config, "logits_scaling") or 1.0)


def _resid_width(config: Any, d_model: int) -> int:
    return d_model * _first_int(config, "hc_mult", "hc_count", default=1)


def _width(module: nn.Module, where: str, d_model: int) -> int:
    shape = linear_shape(module)
    return d_model if shape is None else shape[0 if where == "input" else 1]


def _first_int(config: Any, *names: str, default: int | None = None) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    if default is None:
        raise ModelError(f"can't read a {config.model_type} model: its configuration has none of {', '.join(names)}")
    return default


def _first_float(config: Any, *names: str) -> float | None:
    values = [getattr(config, name, None) for name in names]
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def _path_of(hf: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((path for path, module in hf.named_modules() if module is wanted), None)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _holder(path: str) -> str:
    """The attention module around a path: up to the last component that names attention or an index under it."""
    parts = path.split(".")
    last = max((n for n, part in enumerate(parts) if ATTENTION.search(part)), default=0)
    if last + 1 < len(parts) and parts[last + 1].isdigit():
        last += 1
    first = min((n for n, part in enumerate(parts) if ATTENTION.search(part)), default=0)
    return ".".join(parts[: max(first, last if parts[last].isdigit() else first) + 1])
