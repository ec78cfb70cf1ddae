"""Amplitudes at tagged rates and what chance gives: exact DFT values, a permutation test as one matrix product, tests over
groups of streams.

A unit of text is one sample; the nominal rate is 4 units per second. Amplitudes are |sum of x(t) e^(-i w t)|, not divided
by T, of the series less its mean (so at a DFT bin the plain |rfft| with bin 0 set to 0). arXiv 2510.13255 and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from patchclamp.core.errors import InputError

UNIT_RATE = 4.0
_FLAT = 1e-6  # a series that moves less than this share of its size is constant up to rounding
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Rate:
    """A tagged rate: once every `period` units, in sentences of `n_units`."""

    period: float
    n_units: int

    def __post_init__(self) -> None:
        if self.period < 2:
            raise InputError(
                f"a rate of {self.hz:g} Hz (every {self.period:g} units) lies above half the unit rate; "
                f"give at least 2 units, {UNIT_RATE / 2:g} Hz"
            )

    @property
    def hz(self) -> float:
        return UNIT_RATE / self.period

    @property
    def harmonic(self) -> int | None:
        """Which multiple of the sentence rate it is; None if it is none."""
        times = self.n_units / self.period
        return round(times) if abs(times - round(times)) < 1e-9 and times >= 1 else None


def basis(rate: Rate, length: int, *, nearest: bool = False) -> NDArray[np.complex128]:
    """(length,) complex: what a series is multiplied with and summed over; its own mean is taken out, for rates off the bins.

    nearest: take the nearest DFT bin instead of the exact rate, as the reference code does.
    """
    cycles = length / rate.period
    if nearest:
        cycles = float(np.argmin(np.abs(np.fft.rfftfreq(length, d=1 / UNIT_RATE) - rate.hz)))
    wave = np.exp(-2j * np.pi * cycles * np.arange(length) / length)
    return np.asarray(wave - wave.mean())


def amplitudes(series: NDArray[Any], rates: Sequence[Rate], *, nearest: bool = False) -> NDArray[np.float64]:
    """(rates, n) amplitudes of series (T, n), by the DFT at each rate."""
    waves = np.stack([basis(rate, len(series), nearest=nearest) for rate in rates])
    return np.abs(waves @ series.astype(np.float64))


def profile_amplitudes(profile: NDArray[Any], harmonics: Sequence[int], length: int) -> NDArray[np.float64]:
    """(harmonics, ..., n) amplitudes at multiples of the sentence rate, from means per place in the sentence (..., U, n).

    Exact if length is a multiple of U: X = (T / U) sum_k mu_k e^(-2 pi i m k / U).
    """
    n_units = profile.shape[-2]
    places = np.arange(n_units)
    waves = np.exp(-2j * np.pi * np.outer(harmonics, places) / n_units)
    return np.stack([np.abs(np.einsum("k,...kn->...n", wave, profile)) for wave in waves]) * (length / n_units)


def spectrum(series: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies (bins,) in Hz and amplitudes (bins, n) of series (T, n); bin 0 is set to 0, no window, no scaling."""
    amplitude = np.abs(np.fft.rfft(series, axis=0))
    amplitude[0] = 0
    hz: NDArray[np.float64] = np.fft.rfftfreq(len(series), d=1 / UNIT_RATE).astype(np.float64)
    return hz, amplitude


@dataclass(frozen=True)
class Chance:
    """What chance gives per rate and unit, (rates, n). p: of the observed amplitude; threshold: the 95th percentile."""

    observed: NDArray[np.float32]
    p: NDArray[np.float32]
    threshold: NDArray[np.float32]

    @property
    def passed(self) -> NDArray[np.bool_]:
        """Observed above the 95th percentile of chance (one-sided)."""
        return self.observed > self.threshold


def permutation_null(
    values: NDArray[Any], waves: NDArray[np.complex128], *, permutations: int = 1000, seed: int = 0, device: Any = "cpu"
) -> Chance:
    """Shuffle the rows of `values` and take the amplitude again: step A of the method.

    values: (rows, n). waves: (rates, rows), each with mean 0. All units share the same permutations, which makes it one
    matrix product (n, rows) @ (rows, rates * permutations); p = (1 + permutations that reach the amplitude) / (1 +
    permutations). A constant unit has amplitude 0 and p 1. Memory: 64 MB at a time.
    """
    if permutations < 20:
        raise InputError(f"permutations={permutations} given; a 95th percentile needs at least 20")
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(values)) for _ in range(permutations)], axis=1)  # (rows, permutations)
    shuffled = [_both_parts(wave[orders], wave, device) for wave in waves]
    observed, threshold = (np.zeros((len(waves), values.shape[1]), dtype=np.float32) for _ in range(2))
    p = np.ones_like(observed)
    moving = np.flatnonzero(~_constant(values))
    step = max(1, _CHUNK // permutations)
    for start in range(0, len(moving), step):
        part = moving[start : start + step]
        x = torch.from_numpy(centred(values[:, part]).T.astype(np.float32)).to(device)
        for at, wave in enumerate(waves):
            own, chance = _amplitude(x, *_both_parts(wave[:, None], wave, device)), _amplitude(x, *shuffled[at])
            seen = own[:, 0]
            reached = (chance >= seen[:, None] * (1 - 1e-6)).sum(dim=1)
            observed[at, part] = seen.cpu().numpy()
            p[at, part] = ((1 + reached) / (1 + permutations)).cpu().numpy()
            threshold[at, part] = _percentile(chance.cpu().numpy(), 0.95)
    return Chance(observed, p, threshold)


def asymptotic_null(values: NDArray[Any], waves: NDArray[np.complex128]) -> Chance:
    """The same without permuting: amplitudes of white noise of each unit's own variance.

    At a DFT bin p = exp(-A^2 / (T s^2)), at the highest one erfc(A / sqrt(2 T s^2)); in between, for real and imaginary parts
    of unequal size, the mean over angles of exp(-A^2 / 2(l1 cos^2 + l2 sin^2)) (Craig's form). For long series only.
    """
    x = centred(values)
    power = np.square(x).sum(axis=0) / max(len(x) - 1, 1)
    observed = np.abs(waves @ x)
    p, threshold = np.ones_like(observed), np.zeros_like(observed)
    angles = (np.arange(256) + 0.5) * np.pi / 256
    for at, wave in enumerate(waves):
        parts = np.stack([wave.real, wave.imag])
        first, second = np.linalg.eigvalsh(parts @ parts.T)[::-1].clip(min=0)
        size = 2 * (first * np.cos(angles) ** 2 + second * np.sin(angles) ** 2)
        scaled = np.divide(observed[at] ** 2, power, out=np.zeros_like(power), where=power > 0)
        table = np.concatenate([[0.0], np.geomspace(first * 1e-8, first * 200, 4000)])  # tail probabilities on a grid
        tail = np.exp(-table[:, None] / size).mean(axis=1)
        p[at] = np.exp(np.interp(scaled, table, np.log(tail.clip(1e-300))))
        threshold[at] = np.sqrt(np.interp(-0.05, -tail, table) * power)
    p[:, power == 0] = 1.0
    return Chance(observed.astype(np.float32), p.astype(np.float32), threshold.astype(np.float32))


def paired_test(experiment: NDArray[Any], control: NDArray[Any]) -> NDArray[np.float64]:
    """One-sided p that the experiment's amplitudes exceed the control's: paired t over the groups, (groups, n) each.

    1 where nothing differs. Groups that differ all alike by rounding only count as not differing.
    """
    gap = experiment - control
    size = np.maximum(np.abs(experiment).max(axis=0), np.abs(control).max(axis=0))
    mean, spread = gap.mean(axis=0), gap.std(axis=0, ddof=1) / np.sqrt(len(gap))
    rising = mean > _FLAT * size
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(rising, mean / spread, -np.inf)
    return np.asarray(np.where(rising, stats.t.sf(t, len(gap) - 1), 1.0))


def sign_flip_test(experiment: NDArray[Any], control: NDArray[Any]) -> NDArray[np.float64]:
    """The same by flipping the sign of each group's difference in all 2^groups ways (at most 16 groups): p is exact."""
    gap = experiment - control
    if len(gap) > 16:
        raise InputError(f"{len(gap)} groups given; all sign flips can be tried for at most 16")
    signs = 1 - 2 * ((np.arange(1 << len(gap))[:, None] >> np.arange(len(gap))) & 1)
    own, reached = gap.sum(axis=0), np.zeros(gap.shape[1])
    for start in range(0, len(signs), 64):
        reached += (signs[start : start + 64] @ gap >= own - 1e-9 * np.abs(gap).sum(axis=0)).sum(axis=0)
    return np.asarray(reached / len(signs))


def centred(values: NDArray[Any]) -> NDArray[np.float64]:
    """(rows, n) less each column's mean; exactly 0 where a column is constant up to rounding."""
    x = values.astype(np.float64)
    x -= x.mean(axis=0)
    x[:, _constant(values)] = 0
    return x


def _constant(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether a column moves no more than rounding does."""
    low, high = values.min(axis=0), values.max(axis=0)
    return np.asarray(high - low <= _FLAT * np.maximum(np.abs(low), np.abs(high)))


def _both_parts(columns: NDArray[np.complex128], wave: NDArray[np.complex128], device: Any) -> tuple[Any, Any]:
    """Real and imaginary part of some columns as tensors; None for an imaginary part that is 0 (the highest bin)."""
    real = torch.from_numpy(columns.real.astype(np.float32)).to(device)
    if np.abs(wave.imag).max() < 1e-9:
        return real, None
    return real, torch.from_numpy(columns.imag.astype(np.float32)).to(device)


def _amplitude(x: torch.Tensor, real: torch.Tensor, imaginary: torch.Tensor | None) -> torch.Tensor:
    product = x @ real
    if imaginary is None:
        return product.abs_()
    return product.square_().add_((x @ imaginary).square_()).sqrt_()


def _percentile(rows: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Percentile of each row, linear between ranks as in numpy; overwrites the rows."""
    at = share * (rows.shape[1] - 1)
    low, high = int(np.floor(at)), int(np.ceil(at))
    rows.partition((low, high), axis=1)
    return np.asarray(rows[:, low] + (at - low) * (rows[:, high] - rows[:, low]))
