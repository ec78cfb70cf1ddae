"""Where the queries, keys and values of an attention layer are: the sites `q`, `k`, `v`, read from its projections.

Projections are found by name beside the attention output projection. One projection for all three is sliced; how its
columns are laid out is known for the types in `rows.py`, and contiguous (q, k, v) otherwise. `attention_trial.py`
proves what was read. Attention without such projections (latent, linear, recurrent) has none of the sites.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from patchclamp.models.anatomy import SitePath, linear_shape

NAMES = {
    "q": re.compile(r"(q|wq|to_q|q_proj|q_lin|query)$", re.IGNORECASE),
    "k": re.compile(r"(k|wk|to_k|k_proj|k_lin|key)$", re.IGNORECASE),
    "v": re.compile(r"(v|wv|to_v|v_proj|v_lin|value)$", re.IGNORECASE),
}
FUSED = re.compile(r"(qkv|qkv_proj|wqkv|c_attn|query_key_value|in_proj_qkv|qkv_lin|to_qkv)$", re.IGNORECASE)
LATENT = re.compile(r"(^|\.)(q_a|kv_a|kv_b|kv|q_b)_proj")


def queries_keys_values(
    hf: nn.Module, out: SitePath, heads: int, row: dict[str, Any]
) -> tuple[dict[str, SitePath], str]:
    """Sites `q`, `k`, `v` of the attention whose output projection is read at `out`, and a note on what is missing.

    heads: attention heads (0 = unknown). row: the type's row in `rows.py`; its `qkv` is how a fused projection is laid
    out: "contiguous", "heads" (q, k, v of one head, then of the next) or "parts4" (four parts of q, v, k).
    """
    for holder in _holders(out.path):
        module = hf.get_submodule(holder)
        maps = {path: shape for path, child in module.named_modules() if (shape := linear_shape(child)) is not None}
        named = {site: [path for path in maps if pattern.match(_leaf(path))] for site, pattern in NAMES.items()}
        fused = [path for path in maps if FUSED.match(_leaf(path))]
        latent = any(LATENT.search(path) for path in maps)
        if not (fused or latent or any(named.values())):
            continue
        problem = _problem(module, named, fused, latent)
        if problem:
            return {}, f"{holder}: no q, k and v: {problem}"
        where = f"{holder}.{{}}"
        if fused:
            return _sliced(where.format(fused[0]), maps[fused[0]][1], module, out.width, heads, row)
        found = {
            site: _whole(where.format(paths[0]), maps[paths[0]][1], module, heads, site)
            for site, paths in named.items()
            if paths
        }
        if getattr(module, "is_kv_shared_layer", False):
            found = {"q": found["q"]}
        missing = [site for site in NAMES if site not in found]
        return found, f"{holder}: no {' and '.join(missing)} of its own" if missing else ""
    return {}, f"{out.path}: no q, k and v: no projections of them beside it"


def _holders(out: str) -> list[str]:
    """The modules around an attention output projection, nearest first; two steps up are enough everywhere."""
    parts = out.split(".")
    return [".".join(parts[:count]) for count in (len(parts) - 1, len(parts) - 2) if count > 1]


def _leaf(path: str) -> str:
    """The name of a projection; some wrap theirs in a module and call it `linear`."""
    return path.removesuffix(".linear").rpartition(".")[2]


def _problem(module: nn.Module, named: dict[str, list[str]], fused: list[str], latent: bool) -> str:
    """Why the queries, keys and values of an attention module can't be told; "" if they can."""
    if latent:
        return "they come from latent vectors"
    mixing = [name for name, child in module.named_modules() if isinstance(child, nn.Conv1d | nn.Conv2d)]
    if mixing:
        return f"a convolution ({mixing[0]}) mixes positions behind the projections"
    if len(fused) > 1 or (not fused and any(len(paths) > 1 for paths in named.values())):
        return f"several projections could be them ({', '.join(fused or [path for paths in named.values() for path in paths])})"
    if not fused and not named["q"]:
        return "no query projection"
    return ""


def _whole(path: str, width: int, module: nn.Module, heads: int, site: str) -> SitePath:
    """A projection of its own; a query projection of twice the size holds each head's query and then its gate."""
    size = getattr(module, "head_dim", None)
    if site == "q" and isinstance(size, int) and heads and width == 2 * heads * size:
        return SitePath(path, "output", heads * size, (0, size), every=2 * size)
    return SitePath(path, "output", width)


def _sliced(
    path: str, total: int, module: nn.Module, values: int, heads: int, row: dict[str, Any]
) -> tuple[dict[str, SitePath], str]:
    """The three sites of a fused projection with `total` outputs. values: width of what enters the output projection."""
    if not heads or values % heads:
        return {}, f"{path}: no q, k and v: the number of heads is unknown"
    size = values // heads
    rest, order, every = total - values, "qkv", 0
    layout = row.get("qkv", "contiguous")
    if getattr(module, "new_decoder_architecture", False):  # Falcon: the queries of one key-value head, its k, its v
        groups = rest // (2 * size)
        every = total // groups if groups and total % groups == 0 else 0
    elif getattr(module, "multi_query", False) or layout == "contiguous":
        every = 0
    elif layout == "heads":
        every = total // heads
    elif layout == "parts4":
        every, order = total // 4, "qvk"
    groups = total // every if every else 1
    if rest <= 0 or rest % (2 * size) or values % groups or rest % (2 * groups):
        return {}, f"{path}: no q, k and v: {total} outputs can't be shared out over {heads} heads of {size}"
    each = {"q": values // groups, "k": rest // groups // 2, "v": rest // groups // 2}
    found, start = {}, 0
    for site in order:
        found[site] = SitePath(path, "output", each[site] * groups, (start, start + each[site]), every)
        start += each[site]
    return {site: found[site] for site in NAMES}, ""
