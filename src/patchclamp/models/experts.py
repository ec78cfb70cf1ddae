"""Neurons of fused experts: what is multiplied with a (slice of a) fused down projection, seen and changed in place.

transformers keeps the down projections of all experts of a layer in one tensor and multiplies with slices of it, in
a loop ("eager"), with gathered copies ("batched_mm") or in one grouped product ("grouped_mm"). While an experts
module is watched, its forward runs under a `TorchFunctionMode` that recognises these products by the memory of the
weight, and the token of each row by how rows were taken from the module's input. Nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from patchclamp.core.errors import ModelError
from patchclamp.models.anatomy import SitePath, fused_parameter

Visit = Callable[[Tensor, Tensor | None, int], Tensor]
PRODUCTS = {"linear", "matmul", "__matmul__", "mm", "bmm", "grouped_mm", "_grouped_mm", "grouped_mm_fallback"}
COPIES = {"float", "to", "type_as", "contiguous"}


def watch_experts(module: nn.Module, place: SitePath, visit: Visit) -> Callable[[], None]:
    """Show every expert's neuron vectors to `visit` and use what it returns; the result undoes it.

    visit(values (n, width), rows (n,) or None for all tokens in order, expert) -> values of the same shape; the very
    same object if nothing is changed.
    """
    own, plain = vars(module).get("forward"), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Products(module, place, visit, args[0] if args else next(iter(kwargs.values()))) as mode:
            out = plain(*args, **kwargs)
        mode.check([*args, *kwargs.values()])
        return out

    module.forward = forward

    def undo() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    return undo


class _Products(TorchFunctionMode):
    """Finds the products with the fused down projection inside one call of an experts module."""

    def __init__(self, module: nn.Module, place: SitePath, visit: Visit, given: Tensor) -> None:
        super().__init__()
        self.module, self.place, self.visit = module, place, visit
        self.tokens = (given.numel() // given.shape[-1], given.shape[-1])  # shape of what rows are taken from
        self.each = place.width // place.experts
        self.rows: Tensor | None = None
        self.taken: Tensor | None = None  # the rows themselves, which may be put in another order
        self.used = 0  # rows that products in expert order have used up
        self.tags: dict[int, tuple[Tensor, Any]] = {}  # copies of slices: id -> (the copy, kept alive; its experts)
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in PRODUCTS and len(args) >= 2:
            args = self._product(args, kwargs)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if name in ("__getitem__", "index_select", "repeat_interleave"):
            self._follow(name, args, kwargs, out)
        elif name in COPIES and args and isinstance(out, Tensor):
            which = self._experts_of(args[0])
            if which is not None:
                self.tags[id(out)] = (out, which)
        return out

    def check(self, arguments: list[Any]) -> None:
        """Raise ModelError if tokens were routed to experts but no product was recognised."""
        routed = [a for a in arguments if isinstance(a, Tensor) and not a.is_floating_point()]
        if not self.seen and any(bool((index < self.place.experts).any()) for index in routed):
            kind = type(self.module).__name__
            raise ModelError(
                f"the experts of {self.place.path} ({kind}) compute in a way that can't be watched; load the model with "
                "its eager experts: model.hf.set_experts_implementation('eager')"
            )

    def _follow(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Remember which tokens rows were taken for, and which experts' weights were gathered."""
        source, index = args[0], args[1] if len(args) > 1 else None
        if not isinstance(source, Tensor):
            return
        if name == "repeat_interleave" and isinstance(index, int):
            if source.shape == self.tokens:
                self._take(torch.arange(source.shape[0], device=source.device).repeat_interleave(index), out)
            return
        index = args[2] if name == "index_select" else index
        if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
            return
        if index.dim() <= 1 and self._experts_of(source) == "all":
            self.tags[id(out)] = (out, int(index) if index.dim() == 0 else index)
        elif index.dim() == 1 and source is self.taken and self.rows is not None:
            self._take(self.rows[index], out)
        elif index.dim() == 1 and source.shape == self.tokens and not isinstance(source, nn.Parameter):
            self._take(index, out)

    def _take(self, rows: Tensor, taken: Tensor) -> None:
        self.rows, self.taken, self.used = rows, taken, 0

    def _experts_of(self, tensor: Any) -> Any:
        """None, an expert's number, "all", or the expert of each row: what a tensor holds of the down projection."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self.tags:
            return self.tags[id(tensor)][1]
        down = fused_parameter(self.module, self.place)
        if tensor.untyped_storage().data_ptr() != down.untyped_storage().data_ptr() or tensor.is_meta:
            return None
        size, start = down.numel() // self.place.experts, tensor.storage_offset() - down.storage_offset()
        if start == 0 and tensor.numel() == down.numel() and (self.place.experts > 1 or tensor.dim() == 3):
            return "all"
        return start // size if tensor.numel() == size and start >= 0 and start % size == 0 else None

    def _product(self, args: Any, kwargs: Any) -> Any:
        """The arguments of a product, its neuron vectors replaced if it is one with the down projection."""
        for number in (1, 0):
            which = self._experts_of(args[number])
            if which is None:
                continue
            values = args[1 - number]
            new = self._seen(values, which, kwargs.get("offs", args[2] if len(args) > 2 and which == "all" else None))
            if new is values:
                return args
            return (*args[: 1 - number], new, *args[2 - number :])
        return args

    def _seen(self, values: Tensor, which: Any, offsets: Tensor | None) -> Tensor:
        self.seen = True
        if isinstance(which, int):
            flat = values.reshape(-1, self.each)
            new = self.visit(flat, self._next_rows(flat.shape[0]), which)
            return values if new is flat else new.reshape(values.shape)
        if isinstance(which, Tensor):
            return self._mixed(values, [(e, which.eq(e).nonzero()[:, 0]) for e in which.unique().tolist()])
        if offsets is not None:
            spans = [torch.arange(a, b, device=values.device) for a, b in pairwise([0, *offsets.tolist()])]
            return self._mixed(values, [(e, span) for e, span in enumerate(spans) if len(span)])
        parts = [self.visit(values[expert], None, expert) for expert in range(self.place.experts)]
        return (
            torch.stack(parts)
            if any(p.data_ptr() != v.data_ptr() for p, v in zip(parts, values, strict=True))
            else values
        )

    def _mixed(self, values: Tensor, groups: list[tuple[int, Tensor]]) -> Tensor:
        """Rows of several experts in one tensor; groups: (expert, its row numbers)."""
        flat = values.reshape(-1, self.each)
        rows, changed = self._next_rows(flat.shape[0]), flat
        for expert, chosen in groups:
            taken = flat[chosen]
            new = self.visit(taken, chosen if rows is None else rows[chosen], expert)
            if new is not taken:
                changed = changed.index_copy(0, chosen, new)
        return values if changed is flat else changed.reshape(values.shape)

    def _next_rows(self, count: int) -> Tensor | None:
        """Tokens of the next `count` rows; None if rows were never taken: then they are all tokens in order."""
        if self.rows is None or self.rows.shape[0] == count:
            return self.rows
        rows = self.rows[self.used : self.used + count]
        if rows.shape[0] != count:
            raise ModelError(f"the tokens of {count} rows in the experts of {self.place.path} can't be told")
        self.used += count
        return rows
