"""Who made a result: the call, its arguments, the fingerprints of its inputs, seed, versions and time."""

from __future__ import annotations

import datetime
import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("patchclamp", "torch", "transformers", "safetensors", "numpy", "scipy", "duckdb")


def provenance(
    call: str, *, arguments: dict[str, Any], inputs: dict[str, Any], seed: int | None = None
) -> dict[str, Any]:
    """Plain data to store beside a result, enough for `patchclamp replay`.

    call: dotted public name ("find.language"). arguments: JSON-able keyword arguments.
    inputs: name -> identity (a model's, recording's or corpus's fingerprint and where it came from).
    """
    return {
        "call": call,
        "arguments": arguments,
        "inputs": inputs,
        "seed": seed,
        "versions": versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on; "kernels": how passes compute (`core.products`)."""
    from patchclamp.core.products import kernels  # imports torch, which not every user of this file needs

    return {**_installed(), "kernels": kernels()}


@functools.cache
def _installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
