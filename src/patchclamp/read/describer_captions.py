"""A describer of pictures around a model of the user's own: whatever can say how well texts fit pictures, such as CLIP.

def score(pictures, texts):                   # uint8 (n, height, width, 3) and m texts -> (n, m) logits
    ...
describe(store, describer="captions", options={"score": score, "captions": ["red things", "text on screens"]})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from patchclamp.core.errors import InputError
from patchclamp.read.descriptions import describers
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore

Score = Callable[[NDArray[np.uint8], Sequence[str]], Any]


@describers.add("captions")
class Captions:
    """Captions of a list, weighed by a model that scores pictures against texts (the re-ranker of MILAN, or CLIP-Dissect).

    log p(d | x) is the log-softmax over all captions of (1 - full) * score of what the mask shows + full * score of the whole
    picture; log p(d | E) sums it over the exemplars and normalises; log p(d) is the mean of p(d | x) over the probe's pictures.
    What the mask hides is painted in the picture's mean colour (MILAN weighs CLIP's attention instead).
    """

    def __init__(
        self, store: ExemplarStore, *, score: Score | None = None, captions: Sequence[str] = (), full: float = 0.5
    ) -> None:
        """score: (pictures uint8 (n, height, width, 3), texts) -> (n, texts) logits. captions: what to choose from."""
        self.captions = list(dict.fromkeys(captions))
        if score is None or len(self.captions) < 2:
            raise InputError(
                "the describer captions needs score=, a function of pictures and texts, and at least two captions"
            )
        if store.medium != "image" or any(one.picture is None for one in store.probe):
            raise InputError(
                "captions are for pictures; the store holds text, or was read from a file, which keeps none"
            )
        if not 0 <= full <= 1:
            raise InputError(f"full={full} given; the share of the whole picture lies in 0-1")
        self._score, self.full = score, full
        self._place = {text: at for at, text in enumerate(self.captions)}
        self._seen: WeakKeyDictionary[Exemplars, NDArray[np.float64]] = WeakKeyDictionary()
        on_probe = log_softmax(self._scores([one.picture for one in store.probe]), axis=1)
        self._prior = logsumexp(on_probe, axis=0) - np.log(len(on_probe))

    def candidates(self, exemplars: Exemplars) -> list[str]:
        order = np.argsort(-self._of(exemplars), kind="stable")
        return [self.captions[at] for at in order.tolist()]

    def log_probability(self, descriptions: Sequence[str], exemplars: Exemplars) -> NDArray[np.float64]:
        return self._of(exemplars)[self._places(descriptions)]

    def log_prior(self, descriptions: Sequence[str]) -> NDArray[np.float64]:
        return np.asarray(self._prior[self._places(descriptions)])

    def predict(self, description: str, exemplar: Exemplar) -> NDArray[np.float64]:
        """Probability of the caption for the whole picture, the same on all its cells."""
        found = log_softmax(self._scores([exemplar.picture]), axis=1)[0, self._places([description])[0]]
        return np.full(len(exemplar.parts), float(np.exp(found)))

    def margin(self, description: str, exemplars: Exemplars) -> float:
        """Log-odds of the caption against what it is for any picture, less log(captions)."""
        at = self._places([description])
        return float(self._of(exemplars)[at][0] - self._prior[at][0] - np.log(len(self.captions)))

    def _of(self, exemplars: Exemplars) -> NDArray[np.float64]:
        """(captions,) log p(d | E)."""
        if exemplars not in self._seen:
            shown = [one for one in exemplars.top if one.mask(exemplars.bar).any()]
            masked = self._scores([_masked(one, exemplars.bar) for one in shown])
            whole = self._scores([one.picture for one in shown])
            each = log_softmax((1 - self.full) * masked + self.full * whole, axis=1)
            self._seen[exemplars] = np.asarray(log_softmax(each.sum(0)))
        return self._seen[exemplars]

    def _scores(self, pictures: Sequence[Any]) -> NDArray[np.float64]:
        found = np.asarray(self._score(np.stack(pictures), self.captions), dtype=np.float64)
        if found.shape != (len(pictures), len(self.captions)) or not np.isfinite(found).all():
            raise InputError(
                f"score returned an array of shape {found.shape}; finite logits of shape (pictures, captions) = "
                f"{(len(pictures), len(self.captions))} are needed"
            )
        return found

    def _places(self, descriptions: Sequence[str]) -> list[int]:
        missing = [text for text in descriptions if text not in self._place]
        if missing:
            raise InputError(f"{missing[0]!r} is none of the captions; give it in captions=")
        return [self._place[text] for text in descriptions]


def _masked(exemplar: Exemplar, bar: float) -> NDArray[np.uint8]:
    """The picture with everything outside the mask in its mean colour."""
    picture, grid = exemplar.picture, exemplar.grid
    if picture is None or grid is None:
        raise InputError("an exemplar without a picture was given; captions are for pictures")
    rows = np.arange(picture.shape[0]) * grid[0] // picture.shape[0]
    columns = np.arange(picture.shape[1]) * grid[1] // picture.shape[1]
    shown = exemplar.mask(bar).reshape(grid)[rows][:, columns]
    mean = picture.mean((0, 1)).round().astype(np.uint8)
    return np.asarray(np.where(shown[..., None], picture, mean), dtype=np.uint8)
