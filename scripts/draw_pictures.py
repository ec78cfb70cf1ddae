"""Draw the README's pictures from a demo's files: `patchclamp demo --out demo/`, then `python scripts/draw_pictures.py demo/`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import vl_convert

from patchclamp.find import Finding
from patchclamp.measure import Effects
from patchclamp.studies.language_neurons_view import layer_chart, matrix_chart

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def main(folder: Path) -> None:
    """Write demo-matrix.png and demo-layers.png into docs/images."""
    effects, finding = Effects.load(folder / "demo.effects.json"), Finding.load(folder / "demo.sets.json")
    study: Any = SimpleNamespace(effects=effects, finding=finding)
    IMAGES.mkdir(exist_ok=True)
    for name, chart in (("demo-matrix", matrix_chart(study)), ("demo-layers", layer_chart(study))):
        (IMAGES / f"{name}.png").write_bytes(vl_convert.vegalite_to_png(chart.to_dict(), scale=2))
        print(f"wrote {IMAGES / name}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
