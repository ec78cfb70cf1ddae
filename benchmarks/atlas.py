"""How an atlas of a 32 x 14,336 model holds up: time and memory to build, file size, milliseconds for a unit's page.

    python benchmarks/atlas.py [--labels 7] [--layers 32] [--width 14336] [--memory 512MB] [--threads 2] [--json]

The data are synthetic (seeded): 20 statistics and a score per unit and label, a class per unit, a set per label, 4 exemplars
with text per unit of one label, 10 promoted and 10 suppressed tokens per unit (9.2 million token rows at full size), effects.
Warm: pages of random units from one opened atlas. Cold: the file is dropped from the system's cache and opened anew for each.
Also compared, on statistics alone: one wide table in the order of units, one in the order of labels, one long table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from patchclamp.atlas import schema
from patchclamp.atlas.connection import reading, scratch_folder, writing
from patchclamp.atlas.query import Atlas
from patchclamp.atlas.writer import Writer
from patchclamp.models.units import UnitSet

STATISTICS = ("n", "fired", "rate", "mean", "sd", "min", "max", "q01", "q05", "q25", "q50", "q75", "q95", "q99")
EXTRA = ("skew", "kurtosis", "entropy", "l2", "drift", "onset")
WORDS = ("the", "neuron", "answers", "to", "words", "about", "rivers", "and", "bridges", "in", "spring", "late")


def main() -> None:
    """Run everything and print one table, or JSON."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.atlas.duckdb"
        identity = _identity(arguments.layers, arguments.width)
        started = time.perf_counter()
        peak = _in_child(lambda: build(path, identity, arguments.labels, arguments.memory, arguments.threads))
        found: dict[str, Any] = {
            "units": arguments.layers * arguments.width,
            "labels": arguments.labels,
            "build_seconds": time.perf_counter() - started,
            "build_peak_mb": peak,
            "file_mb": path.stat().st_size / 1e6,
        }
        rng = np.random.default_rng(1)
        units = [
            f"mlp.{rng.integers(arguments.layers)}.{rng.integers(arguments.width)}" for _ in range(arguments.pages)
        ]
        with Atlas.open(path, memory_limit=arguments.memory, threads=arguments.threads) as atlas:
            found["rows"] = atlas.summary()["rows"]
            found["warm"] = _milliseconds(lambda unit: atlas.unit(unit), units)
            found["top"] = _milliseconds(lambda _: atlas.top(method="synthetic", label="l0", k=20), units[:10])
            found["top_statistic"] = _milliseconds(lambda _: atlas.top(statistic="rate", label="l0", k=20), units[:10])
            found["summary"] = _milliseconds(lambda _: atlas.summary(), units[:10])
        found |= _cold(path, units[:30], arguments)
        found["memory_peak_mb"] = _peak_mb()
        started = time.perf_counter()
        with Atlas.open(path, memory_limit=arguments.memory, threads=arguments.threads) as atlas:
            files = atlas.export(Path(folder) / "tables")
        found["export_seconds"] = time.perf_counter() - started
        found["export_mb"] = sum(file.stat().st_size for file in files) / 1e6
        path.unlink()
        found["layouts"] = {name: compare(Path(folder) / "c.duckdb", name, arguments) for name in LAYOUTS}
    found["load"] = os.getloadavg()[0]
    print(json.dumps(found, indent=1) if arguments.json else _table(found))


def build(path: Path, identity: dict[str, Any], n_labels: int, memory: str, threads: int) -> None:
    """Fill an atlas through the same writer that `patchclamp.atlas.build` uses."""
    rng = np.random.default_rng(0)
    labels = [f"l{number}" for number in range(n_labels)]
    with (
        scratch_folder(path.parent) as scratch,
        writing(path, Path(scratch), memory_limit=memory, threads=threads) as connection,
    ):
        schema.create(connection, created="")
        writer = Writer(connection, identity)
        total = writer.layouts["mlp"].total
        recording = writer.run("recording", fingerprint="a")
        ids = writer.labels(recording, dict.fromkeys(labels, (1000, 100_000)))
        writer.statistics(ids, "mlp", _statistics(Path(scratch), n_labels, total, rng))
        moments = rng.integers(0, 1000, (total, 4)), rng.integers(0, 400, (total, 4))
        values = -np.sort(-rng.random((total, 4)), axis=1)
        writer.exemplars(ids[0], "mlp", *moments, values, _windows(rng))
        finding = writer.run("finding", method="synthetic", fingerprint="b")
        found = writer.labels(finding, dict.fromkeys(labels, (None, None)))
        scores = rng.standard_normal((n_labels, total))
        writer.scores(found, "mlp", {"score": scores, "chosen": scores > 2.5})
        writer.classes(
            finding, "mlp", rng.integers(0, 5, total), ["specific", "related", "general", "unassigned", "dead"]
        )
        sets = {}
        for label, label_id, row in zip(labels, found, scores, strict=True):
            chosen = np.flatnonzero(row > 2.5)
            units = UnitSet.at(identity, "mlp", chosen, row[chosen])
            sets[label] = writer.set(finding, label, units, label_id=label_id)
        effects = writer.run("effects", fingerprint="c")
        pairs = [
            {"set": a, "text": b, "metric": "perplexity", "plain": 9.0, "clamped": 9.5} for a in labels for b in labels
        ]
        writer.effects(effects, pairs, sets)
        tokens = writer.run("tokens", method="lm_head", fingerprint="d")
        for start in range(0, total, 1 << 15):
            positions = np.arange(start, min(start + (1 << 15), total))
            for sign in (1, -1):
                strengths = -np.sort(-rng.random((len(positions), 10)), axis=1) * sign
                writer.tokens(tokens, "mlp", positions, rng.integers(0, 128_000, strengths.shape), strengths, sign=sign)
        writer.vocabulary(np.arange(128_000), [f"token{number}" for number in range(128_000)])
        schema.create_views(connection)


def _statistics(folder: Path, n_labels: int, total: int, rng: np.random.Generator) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in (*STATISTICS, *EXTRA):
        kind = np.int64 if name in ("n", "fired") else np.float64
        columns[name] = np.memmap(folder / name, dtype=kind, mode="w+", shape=(n_labels, total))
        for label in range(n_labels):
            columns[name][label] = rng.integers(0, 100_000, total) if kind is np.int64 else rng.standard_normal(total)
    return columns


def _windows(rng: np.random.Generator) -> Iterator[tuple[int, int, str, int, int]]:
    for document in range(1000):
        for position in range(400):
            yield document, position, " ".join(WORDS[number] for number in rng.integers(0, len(WORDS), 20)), 30, 36


def _wide(connection: Any, n_labels: int, total: int, values: np.ndarray, by_unit: bool) -> None:
    names = ", ".join(f"q{number} DOUBLE" for number in range(20))
    connection.execute(f"CREATE TABLE s (unit_id BIGINT, label_id INTEGER, {names})")
    for labels in [range(n_labels)] if by_unit else [[label] for label in range(n_labels)]:
        ids = np.asarray(labels)
        for start in range(0, total, 1 << 15):
            units = np.arange(start, min(start + (1 << 15), total))
            columns = {"unit_id": np.repeat(units, len(ids)), "label_id": np.tile(ids, len(units))}
            for number in range(20):
                columns[f"q{number}"] = np.add.outer(values[number, units], ids).ravel()
            _insert(connection, columns)


def _long(connection: Any, n_labels: int, total: int, values: np.ndarray) -> None:
    connection.execute("CREATE TABLE s (unit_id BIGINT, label_id INTEGER, statistic INTEGER, value DOUBLE)")
    ids, names = np.arange(n_labels), np.arange(20)
    for start in range(0, total, 1 << 13):
        units = np.arange(start, min(start + (1 << 13), total))
        cube = values[:, units].T[:, None, :] + ids[None, :, None]  # (units, labels, statistics)
        keys = np.broadcast_arrays(units[:, None, None], ids[None, :, None], names[None, None, :])
        named = dict(zip(("unit_id", "label_id", "statistic"), (key.ravel() for key in keys), strict=True))
        _insert(connection, {**named, "value": cube.ravel()})


_TOP_WIDE = "SELECT unit_id, q3 FROM s WHERE label_id = 0 ORDER BY q3 DESC, unit_id LIMIT 20"
_TOP_LONG = "SELECT unit_id, value FROM s WHERE label_id = 0 AND statistic = 3 ORDER BY value DESC, unit_id LIMIT 20"
LAYOUTS: dict[str, tuple[Callable[..., None], str]] = {
    "wide, by unit": (lambda *given: _wide(*given, True), _TOP_WIDE),
    "wide, by label": (lambda *given: _wide(*given, False), _TOP_WIDE),
    "long, by unit": (_long, _TOP_LONG),
}


def compare(path: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build seconds, file size, and milliseconds for one unit's rows and for a top 20, of one layout of the statistics."""
    fill, top = LAYOUTS[name]
    total = arguments.layers * arguments.width
    values = np.random.default_rng(2).standard_normal((20, total))
    started = time.perf_counter()
    with scratch_folder(path.parent) as scratch:
        with writing(path, Path(scratch), memory_limit=arguments.memory, threads=arguments.threads) as connection:
            fill(connection, arguments.labels, total, values)
        found: dict[str, Any] = {"build_seconds": time.perf_counter() - started, "file_mb": path.stat().st_size / 1e6}
        connection = reading(path, Path(scratch), memory_limit=arguments.memory, threads=arguments.threads)
        units = np.random.default_rng(1).integers(0, total, arguments.pages).tolist()
        query = "SELECT * FROM s WHERE unit_id = ? ORDER BY label_id"
        found["unit"] = _milliseconds(lambda unit: connection.execute(query, [unit]).fetchall(), units)
        found["top"] = _milliseconds(lambda _: connection.execute(top).fetchall(), units[:10])
        connection.close()
    path.unlink()
    return found


def _insert(connection: Any, columns: dict[str, Any]) -> None:
    connection.register("chunk", columns)
    connection.execute("INSERT INTO s BY NAME SELECT * FROM chunk")
    connection.unregister("chunk")


def _cold(path: Path, units: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Opening the file, and the first page after that, each time with nothing of it in memory."""
    opened: list[Atlas] = []

    def open_again(_: str) -> None:
        opened.append(Atlas.open(path, memory_limit=arguments.memory, threads=arguments.threads))

    def close_and_drop() -> None:
        while opened:
            opened.pop().close()
        _drop(path)

    def reopen() -> None:
        close_and_drop()
        open_again("")

    found = {
        "open": _milliseconds(open_again, units, before=close_and_drop),
        "cold": _milliseconds(lambda unit: opened[-1].unit(unit), units, before=reopen),
    }
    close_and_drop()
    return found


def _drop(path: Path) -> None:
    """Ask the system to forget the file's pages."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _milliseconds(
    function: Callable[[Any], Any], values: list[Any], before: Callable[[], None] = lambda: None
) -> dict[str, float]:
    taken, worked = [], []
    for value in values:
        before()
        started, busy = time.perf_counter(), time.process_time()
        function(value)
        taken.append((time.perf_counter() - started) * 1e3)
        worked.append((time.process_time() - busy) * 1e3)
    spread = {"median": float(np.median(taken)), "p95": float(np.percentile(taken, 95)), "max": max(taken)}
    return {**spread, "first": taken[0], "cpu": float(np.median(worked))}


def _in_child(function: Callable[[], None]) -> float:
    """Run in a forked process, so that its peak memory (MB) is its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit("the build failed")
    return usage.ru_maxrss / 1e3


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _identity(layers: int, width: int) -> dict[str, Any]:
    sites = {"mlp": {"widths": [width] * layers, "experts": [0] * layers}}
    return {
        "name": "synthetic",
        "type": "llama",
        "fingerprint": "5" * 64,
        "source": None,
        "dtype": "bfloat16",
        "sites": sites,
    }


def _table(found: dict[str, Any]) -> str:
    rows = f"{found['rows']['tokens']:,} token rows"
    lines = [f"{found['units']:,} units, {found['labels']} labels, {rows}; load of the machine {found['load']:.1f}"]
    lines.append(
        f"build {found['build_seconds']:.1f} s, peak {found['build_peak_mb']:.0f} MB; file {found['file_mb']:.0f} MB"
    )
    for name, what in (
        ("warm", "page, warm"), ("open", "open, cold"), ("cold", "first page, cold"), ("top", "top 20 of a method"),
        ("top_statistic", "top 20 of a statistic"), ("summary", "summary"),
    ):  # fmt: skip
        lines.append(f"{what:24}{_spread(found[name])}")
    lines.append(f"export to Parquet {found['export_seconds']:.1f} s, {found['export_mb']:.0f} MB")
    lines.append(f"peak memory of the reading process {found['memory_peak_mb']:.0f} MB")
    for name, entry in found["layouts"].items():
        lines.append(f"{name:16}build {entry['build_seconds']:.1f} s, {entry['file_mb']:.0f} MB")
        lines.append(f"  one unit              {_spread(entry['unit'])}")
        lines.append(f"  top 20                {_spread(entry['top'])}")
    return "\n".join(lines)


def _spread(entry: dict[str, float]) -> str:
    walls = ", ".join(f"{name} {entry[name]:.1f}" for name in ("median", "p95", "max"))
    return f"{walls} ms; processor {entry['cpu']:.1f} ms"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--labels", 7), ("--layers", 32), ("--width", 14336), ("--threads", 2), ("--pages", 300)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--memory", default="512MB")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
