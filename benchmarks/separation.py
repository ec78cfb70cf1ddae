"""AUROC and average precision of all units at once: seconds for 36,864 units x 2,000 documents, beside scikit-learn.

    python benchmarks/separation.py [--units 36864] [--documents 2000] [--labels 1 5] [--subset 200] [--json]

Values are standard normal float32 (no ties), then the same cut at 0 (half of them tied). The plain loop calls
scikit-learn's two scores for each unit of a subset; its time for all units is scaled up from there. Wall and CPU
seconds; the ratio is of CPU time, the steadier one on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from patchclamp.find.separation import separate


def main() -> None:
    """Time both on the same values and check that they agree."""
    given = parse()
    rng = np.random.default_rng(0)
    values = rng.normal(size=(given.documents, given.units)).astype(np.float32)
    truth = rng.random((max(given.labels), given.documents)) < 0.2
    rows = []
    for kind, data in (("no ties", values), ("half tied", np.maximum(values, 0))):
        loop = timed(lambda data=data: plain_loop(data[:, : given.subset], truth[0]))
        scaled = loop["cpu"] * given.units / given.subset
        for labels in given.labels:
            for what in (("auroc", "ap"), ("auroc", "se", "ties", "ap", "ap_low")):
                mine = timed(lambda data=data, labels=labels, what=what: separate(data, truth[:labels], what=what))
                found = mine["result"]
                np.testing.assert_allclose(found.auroc[0, : given.subset], loop["result"][0], atol=1e-12)
                np.testing.assert_allclose(found.ap[0, : given.subset], loop["result"][1], atol=1e-12)
                ratio = scaled * labels / mine["cpu"]
                row = {
                    "values": kind,
                    "labels": labels,
                    "fields": len(what),
                    "wall_s": mine["wall"],
                    "cpu_s": mine["cpu"],
                }
                rows.append(row | {"scikit_learn_cpu_s": scaled * labels, "times_faster": ratio})
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{given.units:,} units x {given.documents:,} documents; scikit-learn scaled up from {given.subset} units")
    for row in rows:
        print(
            f"{row['values']:>10}, {row['labels']} labels, {row['fields']} fields: {row['wall_s']:6.1f} s "
            f"({row['cpu_s']:.1f} s CPU); scikit-learn {row['scikit_learn_cpu_s']:6.0f} s; {row['times_faster']:.0f} times faster"
        )


def plain_loop(values: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """AUROC and average precision of each unit, one call each, (2, units)."""
    columns = values.T
    return np.array(
        [[roc_auc_score(truth, column) for column in columns], [average_precision_score(truth, c) for c in columns]]
    )


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Wall and CPU seconds of a call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "result": result}


def parse() -> argparse.Namespace:
    """Options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--units", type=int, default=36_864)
    options.add_argument("--documents", type=int, default=2000)
    options.add_argument("--labels", type=int, nargs="+", default=[1, 5])
    options.add_argument("--subset", type=int, default=200)
    options.add_argument("--json", action="store_true")
    return options.parse_args()


if __name__ == "__main__":
    main()
