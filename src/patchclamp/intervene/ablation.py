"""Taking a direction out of everything that writes to the residual stream: `ablation(model, direction)`.

The embedding and every attention and MLP output lose their component along the direction, so the stream never has one. Each
of these is a linear map, so the same can be written into the weights exactly (`edit(model, ablation(model, direction))`:
orthogonalised writers; Arditi et al. 2024, arXiv 2406.11717). Where an output passes a norm with gain g on its way to the
stream, the component along g * v is removed in front of the norm, which leaves none along v behind it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus
from patchclamp.intervene.directions import mean_difference
from patchclamp.intervene.fits import fits
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.kinds import Interventions
from patchclamp.intervene.targets import Direction
from patchclamp.models.collect import collect
from patchclamp.models.directions import STREAM
from patchclamp.models.norms import linear_part, of_blocks
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

WRITERS = ("embed", "attn_out", "mlp_out")
LEFT = 0.01  # share of a state's length along the direction that is worth a warning
PROBE = (2, 16)  # sequences and tokens of the check


def ablation(
    model: LanguageModel,
    direction: Direction | ArrayLike,
    *,
    keep: float = 0.0,
    sites: Sequence[str] = WRITERS,
    scope: str = "all",
    check: bool = True,
) -> Interventions:
    """Remove a direction of the residual stream wherever something is written to it, in all layers, as data.

    direction: a `Direction` with one vector at resid, embed, attn_out or mlp_out, or (d_model,) numbers; its length and sign
    don't matter. keep: what share of the component stays (0 removes it, -1 turns it round). sites: what loses it; with
    ("embed", "resid") the stream itself is projected, which no weight can hold. scope: "prompt", "generated" or "all". check:
    run a few tokens and warn where more than 1 % of a state still lies along the direction (position embeddings, norms with
    biases, routes that are none of these sites). InputError for several different vectors: choose one.
    """
    vector = _vector(model, direction)
    if unknown := [site for site in sites if site not in STREAM]:
        raise InputError(f"sites {unknown} given; a direction of the stream can be removed at {', '.join(STREAM)}")
    items = []
    for site in sites:
        if site not in model.layouts:
            raise InputError(f"{model.name} has no site {site!r}; it has {', '.join(model.layouts)}")
        layers = [layer for layer, width in enumerate(model.layouts[site].widths) if width]
        vectors = np.stack([_in_front(model, site, layer, vector) for layer in layers])
        target = Direction.of(model, site, layers, vectors)
        items.append(Intervention(target, "scale" if keep else "project", keep or None, scope, note="ablation"))
    found = Interventions(items)
    if check and not keep and scope == "all":
        _warn_of_rest(model, found, vector)
    return found


def component_left(
    model: LanguageModel, direction: Direction | ArrayLike, ids: torch.Tensor | None = None
) -> NDArray[np.float64]:
    """Largest share of a state's length along the direction, per layer (n_layers,), under whatever changes are active.

    ids: (batch, seq) tokens; by default 2 x 16 random ones.
    """
    vector = _vector(model, direction)
    unit = torch.from_numpy(vector / np.linalg.norm(vector))
    if ids is None:
        vocabulary = int(model.hf.config.get_text_config(decoder=True).vocab_size)
        ids = torch.randint(0, vocabulary, PROBE, generator=torch.Generator().manual_seed(0))
    states = collect(model, "resid", ids)
    layout: Layout = model.layouts["resid"]
    shares = []
    for values in layout.split(states.reshape(-1, states.shape[-1])):
        wide = values.double()
        shares.append(float(((wide @ unit).abs() / wide.norm(dim=1).clamp(min=1e-30)).max()) if wide.numel() else 0.0)
    return np.array(shares)


def _warn_of_rest(model: LanguageModel, items: Interventions, vector: NDArray[np.float64]) -> None:
    if "resid" not in model.layouts or any(width not in (0, len(vector)) for width in model.layouts["resid"].widths):
        return  # no stream, or several side by side
    with items.applied(model):
        left = component_left(model, vector)
    if left.max() > LEFT:
        layer = int(left.argmax())
        warnings.warn(
            f"up to {left.max():.0%} of a state still lies along the direction (resid of layer {layer}): something else writes "
            "to the stream, such as position embeddings; sites=('embed', 'resid') removes it while the model runs",
            stacklevel=3,
        )


def _in_front(model: LanguageModel, site: str, layer: int, vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector whose removal at a site leaves nothing along `vector` in the stream: itself, or as a norm behind sees it."""
    if site not in ("attn_out", "mlp_out"):
        return vector
    norm = of_blocks(model)[layer].after.get(site.removesuffix("_out"))
    if norm is None:
        return vector
    row = torch.from_numpy(vector)[None]
    return linear_part(norm, len(vector)).pulled_back(row).double().numpy()[0]


def _vector(model: LanguageModel, direction: Any) -> NDArray[np.float64]:
    """(d_model,) float64 of what was given."""
    if isinstance(direction, Direction):
        direction.check_model(model)
        if direction.site not in STREAM:
            raise InputError(f"{direction!r} is no direction of the residual stream; give one of {', '.join(STREAM)}")
        first = direction.vectors[0] / np.linalg.norm(direction.vectors[0])
        others = direction.vectors / np.linalg.norm(direction.vectors, axis=1, keepdims=True)
        if not np.allclose(others, first, atol=1e-6):
            raise InputError(
                f"{direction!r} has {len(direction.layers)} different vectors; give the direction of one layer"
            )
        return direction.vectors[0]
    plain = direction.detach().cpu() if hasattr(direction, "detach") else direction
    return Direction.of(
        model, "embed" if "embed" in model.layouts else "resid", 0, np.asarray(plain, dtype=np.float64)
    ).vectors[0]


@fits.add("ablate-direction")
def fit_ablation(
    model: LanguageModel,
    text: Corpus,
    *,
    towards: str,
    away: Sequence[str] = (),
    site: Literal["resid", "attn_out", "mlp_out"] = "resid",
    layer: int | None = None,
    keep: float = 0.0,
) -> Interventions:
    """Remove the direction between two texts from everything that writes to the residual stream; weights can hold it.

    text: labelled text. towards: label at one end of the direction. away: labels at the other; all others by default.
    site: where the means are taken. layer: the same; the middle one by default. keep: what share of the component stays.

    Example: `patchclamp fit ablate-direction demo --text demo:find --towards de --away en --out no-german.json`.
    """
    where = model.anatomy.n_layers // 2 if layer is None else layer
    found = mean_difference(model, towards, list(away) or None, text=text, site=site, layers=where)
    return ablation(model, found, keep=keep)
