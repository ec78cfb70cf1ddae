"""The LM head of a model as numbers: one row per token, and what stands between the residual stream and the logits."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.models.norms import LinearPart, linear_part

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True, eq=False)
class Head:
    """logits = cap * tanh(scale * (matrix norm(x) + bias) / cap), without a cap scale * (matrix norm(x) + bias).

    matrix: (tokens, d_model), the model's own tensor; rows beyond the tokenizer's last token are left out. A negative scale
    turns the order of tokens around; a soft cap is monotone and leaves it as it is.
    """

    matrix: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None
    norm: nn.Module | None
    left_out: int = 0

    @property
    def tokens(self) -> int:
        return int(self.matrix.shape[0])

    @functools.cached_property
    def folded(self) -> LinearPart | None:
        """What the final norm does to a direction; None where there is no final norm."""
        return None if self.norm is None else linear_part(self.norm, int(self.matrix.shape[1]), "the final norm")

    def states(self, rows: Tensor) -> Tensor:
        """Rows (n, d) taken for whole residual states: the final norm of each."""
        if self.norm is None:
            return rows
        held = next(self.norm.parameters(), None)
        given = rows if held is None else rows.to(held.device, held.dtype)
        with torch.inference_mode():
            out: Any = self.norm(given)
        return out.to(rows.device).float()


def head_of(model: LanguageModel) -> Head:
    """The LM head; InputError for a model without one or with one that is no dense matrix over the residual stream."""
    anatomy = model.anatomy
    if anatomy.lm_head is None:
        raise InputError(f"{model.name} ({anatomy.model_type}) has no LM head, so its units point at no tokens")
    module = anatomy.module(anatomy.lm_head)
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
        raise InputError(f"the LM head of {model.name} is quantized or offloaded; load a dense copy to read tokens")
    if weight.dim() != 2 or weight.shape[1] != anatomy.d_model:
        raise InputError(
            f"the LM head of {model.name} has shape {tuple(weight.shape)}; (vocabulary, {anatomy.d_model}) is needed: "
            "something else stands between its residual stream and its logits"
        )
    known = int(weight.shape[0])
    if model.tokenizer is not None:
        known = min(known, max(len(model.tokenizer), 1))
    matrix = weight.detach()[:known]
    if not bool(torch.isfinite(matrix.sum(dtype=torch.float32))):
        bad = (~torch.isfinite(matrix).all(1)).nonzero().flatten()
        if len(bad):
            raise ModelError(
                f"the LM head of {model.name} holds NaN or infinite weights, first for token {int(bad[0])}"
            )
    bias: Any = getattr(module, "bias", None)
    return Head(
        matrix=matrix,
        bias=None if bias is None else bias.detach()[:known].float(),
        scale=anatomy.logit_scale,
        soft_cap=anatomy.soft_cap,
        norm=None if anatomy.final_norm is None else anatomy.module(anatomy.final_norm),
        left_out=int(weight.shape[0]) - known,
    )
