"""The k largest and smallest entries of the rows of a product A B^T, exactly, without ever holding more than a block of it.

`Scan` multiplies blocks of rows into one kept buffer whose rows begin at multiples of 128 numbers (what MKL writes
fastest, and no new memory per block; where oneDNN is used, it makes its own), and `strongest` picks from it in two levels:
the largest entry of each block of 64 columns, then the entries of the k blocks that hold the largest. Whatever is among
the k largest of a row lies in one of these blocks, or equals an entry there; equal entries go to the lowest column. The
same code runs on a GPU, where picking from 128,000 columns in one go costs more than the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.products import faster, product

BLOCK = 64  # columns whose largest entry is looked at first
ALIGN = 128  # floats; rows of the buffer begin at multiples of it
ROWS = {"cpu": (512, 112 << 20)}  # device type -> most rows at once, most bytes of the buffer
LARGE = (8192, 2 << 30)


class Ends(NamedTuple):
    """The k largest entries of each row, falling, and the k smallest, rising: (n, k) float32 values and int64 columns."""

    top_values: Tensor
    top_ids: Tensor
    bottom_values: Tensor
    bottom_ids: Tensor


def strongest(values: Tensor, k: int, *, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) entries of each row of (n, columns), strongest first, ties to the lowest column.

    Returns values (n, k) and columns (n, k) int64; exact. The values must not hold NaN. InputError if k is out of range.
    """
    if not 1 <= k <= values.shape[1]:
        raise InputError(f"the {k} strongest of {values.shape[1]} tokens asked for; give k from 1 to {values.shape[1]}")
    found, ids, tied = _picked(values, k, largest, _plain)
    again = tied.nonzero().flatten()
    if again.numel():
        found[again], ids[again], _ = _picked(values[again], k, largest, _keyed)
    return found, ids


class Scan:
    """The product of blocks of rows with a fixed matrix (columns of the product, d), written into one buffer."""

    def __init__(self, matrix: Tensor) -> None:
        half = matrix.dtype in (torch.bfloat16, torch.float16)
        self.wide = half and matrix.device.type == "cuda" and _half_products_sum_in_float()
        self.matrix = matrix if self.wide or matrix.dtype == torch.float32 else matrix.float()
        self.columns = matrix.shape[0]
        most, size = ROWS.get(matrix.device.type, LARGE)
        if faster(self.matrix[:1].expand(most, -1), self.matrix):
            most //= 2  # every product is new memory then, and the last one's may not be free yet
        stride = -(-self.columns // ALIGN) * ALIGN
        self.rows = max(1, min(most, size // (4 * stride)))
        self.buffer = torch.empty(0, device=matrix.device)
        self._stride = stride

    def blocks(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(which rows, their product (n, columns) float32) block by block; the product is overwritten by the next one."""
        for start in range(0, rows.shape[0], self.rows):
            part = rows[start : start + self.rows]
            yield slice(start, start + part.shape[0]), self.product(part)

    def product(self, rows: Tensor) -> Tensor:
        """rows (n, d) times the matrix, (n, columns) float32: a view of the buffer."""
        n = rows.shape[0]
        given = rows.to(device=self.matrix.device, dtype=self.matrix.dtype)
        if self.wide:  # torch keeps the memory of a GPU by itself
            return torch.mm(given, self.matrix.T, out_dtype=torch.float32)
        if faster(given, self.matrix):
            return product(given, self.matrix)
        if self.buffer.numel() < n * self._stride:
            self.buffer = torch.empty(n * self._stride, device=self.matrix.device)
        out = self.buffer[: n * self._stride].view(n, self._stride)[:, : self.columns]
        return torch.mm(given, self.matrix.T, out=out)


def ends(values: Tensor, k: int, *, both: bool = True) -> Ends:
    """Both ends of the rows of (n, columns); the lower one is empty unless `both`."""
    top = strongest(values, k)
    bottom = strongest(values, k, largest=False) if both else (values[:, :0].clone(), top[1][:, :0].clone())
    return Ends(*top, *bottom)


def extremes(
    rows: Tensor, matrix: Tensor, k: int, *, both: bool = True, change: Callable[[Tensor], Tensor] | None = None
) -> Ends:
    """Both ends of the rows of rows (n, d) times matrix (columns, d)^T. change: applied to every block of the product.

    At no time more than a block of the product is in memory.
    """
    scan = Scan(matrix)
    found = [ends(block if change is None else change(block), k, both=both) for _, block in scan.blocks(rows)]
    return joined(found)


def joined(parts: Iterable[Ends]) -> Ends:
    """Ends of successive rows in one."""
    listed = list(parts)
    return Ends(*(torch.cat(column) for column in zip(*listed, strict=True)))


Order = Callable[[Tensor, bool], Tensor]


def _picked(values: Tensor, k: int, largest: bool, order: Order) -> tuple[Tensor, Tensor, Tensor]:
    """Values, columns, and the rows (n,) bool where entries that count were equal, so that their order is arbitrary.

    order: what is compared instead of the values: themselves, or keys that differ always.
    """
    n, columns = values.shape
    blocks = columns // BLOCK
    if blocks <= 2 * k:
        _, where, tied = _best(order(values, largest), k)
        return values.gather(1, where), where, tied
    grouped = values[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
    best = grouped.amax(2) if largest else grouped.amin(2)
    _, chosen, tied = _best(order(best, largest), k)
    chosen = chosen.sort(1).values  # columns in rising order, for ties
    inner = torch.arange(BLOCK, device=values.device)
    ids = (chosen[:, :, None] * BLOCK + inner).flatten(1)
    candidates = grouped.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    if rest := columns - blocks * BLOCK:
        candidates = torch.cat([candidates, values[:, -rest:]], 1)
        last = torch.arange(columns - rest, columns, device=values.device)
        ids = torch.cat([ids, last.expand(n, -1)], 1)
    _, where, equal = _best(order(candidates, largest), k)
    return candidates.gather(1, where), ids.gather(1, where), tied | equal


def _best(ordered: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each row, where they are, and whether any of them equals another or the next one."""
    found, where = ordered.topk(min(k + 1, ordered.shape[1]))
    return found[:, :k], where[:, :k], (found[:, 1:] == found[:, :-1]).any(1)


def _plain(values: Tensor, largest: bool) -> Tensor:
    return values if largest else -values


def _keyed(values: Tensor, largest: bool) -> Tensor:
    """int64 keys in the order of the values, equal ones in falling order of their columns: all keys of a row differ."""
    bits = (_plain(values, largest).float() + 0.0).contiguous().view(torch.int32)  # + 0.0: -0 and 0 are equal
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    columns = torch.arange(values.shape[1], device=values.device)
    return (rising << 32) | (0xFFFFFFFF - columns)


def _half_products_sum_in_float() -> bool:
    """Whether this torch gives products of half-precision matrices in float32; older ones round them, which makes ties."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return version >= (2, 8)
