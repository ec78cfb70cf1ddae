"""Names of the parts between which paths run: senders and receivers, read from names such as head.9.6, mlp.3 and embed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.path_runs import Node, head_columns, kv_groups
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel

COMPONENTS = ("q", "k", "v")
_NODE = re.compile(r"head\.(?P<layer>\d+)\.(?P<head>\d+)|mlp\.(?P<mlp>\d+)|(?P<embed>embed)")
Receivers = list[tuple["Tap", list[Node]]]


def receivers_of(model: LanguageModel, given: Any, component: str) -> Receivers:
    """Taps and who reads there; an empty list stands for the final residual."""
    if isinstance(given, str) and given == "final":
        if component:
            raise InputError(f"component={component!r} given, but the final residual has no components")
        return []
    nodes = _nodes(model, given, "receiver")
    kinds = {node.kind for node in nodes}
    if not nodes or "embed" in kinds or len(kinds) > 1:
        raise InputError(
            'receivers are "final", heads such as head.9.6, or MLPs such as mlp.3; not a mixture, and not none'
        )
    if kinds == {"mlp"}:
        if component:
            raise InputError(f"component={component!r} given, but MLPs are read as wholes; leave it out")
        return [(("mlp_out", node.layer), [node]) for node in nodes]
    if component not in COMPONENTS:
        raise InputError(f"component={component!r} given; of heads it is one of {', '.join(COMPONENTS)}")
    found: dict[Tap, list[Node]] = {}
    for node in nodes:
        model.anatomy.site(component, node.layer)
        head_columns(model, component, node)
        found.setdefault((component, node.layer), []).append(node)
    return list(found.items())


def senders_of(model: LanguageModel, given: Any) -> list[Node]:
    layers = range(model.anatomy.n_layers)
    heads = [Node("head", layer, head) for layer in layers for head in range(model.anatomy.heads[layer])]
    if isinstance(given, str) and given in ("heads", "all"):
        mlps = model.layouts.get("mlp_out")
        others = [Node("mlp", layer) for layer in layers if mlps is not None and mlps.widths[layer]]
        return heads if given == "heads" else [Node("embed"), *heads, *others]
    nodes = _nodes(model, given, "sender")
    if not nodes:
        raise InputError("no senders given; there are heads such as head.9.6, MLPs such as mlp.3, and embed")
    return nodes


def _nodes(model: LanguageModel, given: Any, role: str) -> list[Node]:
    if isinstance(given, UnitSet):
        given.check_model(model)
    names = [given] if isinstance(given, str) else [str(name) for name in given]
    found = []
    for name in names:
        match = _NODE.fullmatch(name)
        if match is None:
            raise InputError(f"{name!r} is no {role}; write head.9.6, mlp.3{'' if role == 'receiver' else ' or embed'}")
        if match["embed"]:
            found.append(Node("embed"))
        elif match["mlp"]:
            model.anatomy.site("mlp_out", int(match["mlp"]))
            found.append(Node("mlp", int(match["mlp"])))
        else:
            layer, head = int(match["layer"]), int(match["head"])
            model.anatomy.site("head", layer)
            if head >= model.anatomy.heads[layer]:
                raise InputError(f"{name} is no {role}: layer {layer} has heads 0-{model.anatomy.heads[layer] - 1}")
            found.append(Node("head", layer, head))
    return list(dict.fromkeys(found))


def reaches(node: Node, receivers: Receivers, below: str) -> bool:
    """Whether a sender lies below a receiver on the residual stream."""
    if not receivers or node.kind == "embed":
        return True
    layers = [layer for (_, layer), _ in receivers]
    limit = max(layers) if below == "any" else min(layers)
    within = node.kind == "head" and receivers[0][0][0] == "mlp_out"  # a block's MLP reads what its heads write
    return node.layer < limit or (within and node.layer == limit)


def shares(model: LanguageModel, tap: Tap, nodes: list[Node]) -> bool:
    """Whether heads that are no receivers read the same keys or values as receivers."""
    site, layer = tap
    if site not in ("k", "v"):
        return False
    each = model.anatomy.heads[layer] // kv_groups(model, site, layer)
    return any(len([n for n in nodes if n.index // each == group]) < each for group in {n.index // each for n in nodes})


def check_held(model: LanguageModel) -> None:
    """Every layer's mixing of positions must be a head's, or it could not be held at clean values."""
    anatomy = model.anatomy
    without = [layer for layer in range(anatomy.n_layers) if "attn" not in anatomy.sites or not anatomy.heads[layer]]
    if without:
        raise ModelError(
            f"layer {without[0]} of this {anatomy.model_type} model has no attention heads that can be held at their clean "
            "output, so paths through the residual stream alone can't be told from others"
        )
