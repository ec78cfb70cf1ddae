"""A dictionary from its folder, whoever wrote it: any of ours, or an autoencoder that SAELens keeps."""

from __future__ import annotations

import os
from pathlib import Path

from patchclamp.models.feature_files import HEADER
from patchclamp.models.features import Dictionary, load_dictionary
from patchclamp.read.sae_lens import CONFIG, load_sae_lens


def open_dictionary(folder: str | os.PathLike[str]) -> Dictionary:
    """The dictionary of a folder. InputError for a folder of another kind, DamagedError for one that doesn't hold together."""
    path = Path(folder)
    if (path / CONFIG).is_file() and not (path / HEADER).exists():
        return load_sae_lens(path)
    return load_dictionary(path)
