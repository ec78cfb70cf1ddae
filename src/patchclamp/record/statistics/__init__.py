"""What a recording keeps per unit: small mergeable classes, one per file, each registered with one decorator.

A statistic's file defines a class derived from `Statistic` and decorates it with `@statistics.add("name")`; nothing else is
needed.
"""

from __future__ import annotations

from patchclamp.core.registry import Registry
from patchclamp.record.statistics.base import Statistic, Where

statistics: Registry[type[Statistic]] = Registry("statistic", room=__name__)

__all__ = ["Statistic", "Where", "statistics"]
