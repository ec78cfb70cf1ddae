"""Floor 7: one DuckDB file about one model: units, statistics, scores, sets, exemplars, effects, tokens, runs.

atlas = patchclamp.atlas.build("demo.atlas.duckdb", recordings=[recording], findings=[found], effects=[effects])
atlas = patchclamp.Atlas.open("demo.atlas.duckdb")
atlas.unit("mlp.3.17")
atlas.top(method="ternary", label="fr", k=20).polars()
atlas.sql("SELECT unit, rate FROM recorded WHERE label = ? ORDER BY rate DESC LIMIT 5", ["fr"])
atlas.export("tables/")
"""

from __future__ import annotations

from patchclamp.atlas.build import build
from patchclamp.atlas.page import UnitPage
from patchclamp.atlas.query import Atlas
from patchclamp.atlas.result import Result
from patchclamp.atlas.schema import SCHEMA_VERSION
from patchclamp.atlas.writer import Writer

__all__ = ["SCHEMA_VERSION", "Atlas", "Result", "UnitPage", "Writer", "build"]
