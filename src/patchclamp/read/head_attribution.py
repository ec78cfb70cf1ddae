"""What every head adds to a logit difference directly, by what it writes into the final residual stream.

The difference answer - wrong is linear in the stream once the scale of the final norm is held at what it was; a head's
attribution is its term. Merullo, Eickhoff & Pavlick 2024 (arXiv 2310.08744) compare it before and after a repair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.intervene.path_runs import Recorded
from patchclamp.models.anatomy import weight_of
from patchclamp.models.head import head_of

if TYPE_CHECKING:
    from patchclamp.data.paired import Pairs
    from patchclamp.models.hooks import Tap
    from patchclamp.models.load import LanguageModel


def head_attribution(model: LanguageModel, pairs: Pairs) -> Tensor:
    """(n_heads, n) float64 on the CPU: logits that each head (layer by layer) adds to answer - wrong at the last token.

    Of the clean prompts, under whatever changes are active; one forward pass. Exact where blocks add to the stream what their
    heads write; before a soft cap. InputError for a model without heads or a final norm.
    """
    anatomy, last = model.anatomy, model.anatomy.n_layers - 1
    head = head_of(model)
    if head.norm is None or head.folded is None or not any(anatomy.heads):
        raise InputError(f"{model.name} has no final norm or no heads; there is no direct attribution of heads")
    layers = [layer for layer in range(anatomy.n_layers) if anatomy.heads[layer]]
    taps: list[Tap] = [("attn", layer) for layer in layers]
    stream, final = ("resid", last), ("final", last)
    run = Recorded(model, pairs.clean, pairs.mask, [*taps, stream, final])
    rows = torch.arange(len(pairs), device=pairs.end.device) * pairs.clean.shape[1] + pairs.end
    at = {tap: values[rows.to(values.device)].double().cpu() for tap, values in run.values.items()}
    part, norm = head.folded, head.norm
    held: Any = next(norm.parameters(), at[stream])
    with torch.inference_mode():
        offset = norm(torch.zeros(1, anatomy.d_model, device=held.device, dtype=held.dtype)).double().cpu()
    linear = part(at[stream].float()).double()
    size = linear.square().sum(1) / (linear * (at[final] - offset)).sum(1)  # (n,) what the norm divided by
    matrix = head.matrix.cpu().double()
    wanted = (matrix[pairs.answer.cpu()] - matrix[pairs.wrong.cpu()]) * head.scale
    direction = part.pulled_back(wanted.float()).double() / size[:, None]  # (n, d_model)
    found = []
    for layer in layers:
        weight = weight_of(anatomy.module(anatomy.site("attn", layer).path)).cpu().double()  # (d_model, width)
        values = at["attn", layer] * (direction @ weight)
        found.append(values.unflatten(1, (anatomy.heads[layer], -1)).sum(-1).T)
    return torch.cat(found)
