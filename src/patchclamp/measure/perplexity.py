"""Perplexity per label: exp of the mean negative log-likelihood per scored token, documents kept apart for intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Budget, Selection
from patchclamp.data.corpora import Corpus
from patchclamp.measure.likelihood import Documents, Reading, score
from patchclamp.measure.measurement import Measurement, Measurements
from patchclamp.models.fast_passes import fast_passes

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def perplexity(
    model: LanguageModel,
    text: Corpus,
    *,
    batch_tokens: int = 4096,
    max_length: int | None = None,
    select: Selection | None = None,
    quiet: bool = False,
) -> Measurements:
    """Token-weighted perplexity of every label, under whatever interventions are active.

    Log-softmax in float32 whatever the model's dtype, sums in float64. A token is scored if it is selected and has a
    predecessor: the first token of a document counts only after a BOS. Documents longer than max_length (default: the
    model's, at most 2048) are cut into pieces that are read on their own. The result does not depend on batch_tokens.
    Raises InputError for a label without a token to score, ModelError naming a document whose loss is not finite.
    """
    reading = Reading(batch_tokens, max_length, select or Selection())
    fingerprint = text.fingerprint
    found = {}
    for label in text.labels:
        documents, budget = Documents(label), Budget(batch_tokens)
        with fast_passes(model), progress(f"perplexity {label}", unit="tokens", quiet=quiet) as advance:
            for batch in reading.batches(model, text, label):
                documents.add("perplexity", batch.document, score(model, batch, budget))
                documents.count(batch)
                advance(float(batch.attention_mask.sum()))
        documents.check()
        found[label] = Measurement("perplexity", label, documents.totals["perplexity"], documents.tokens, fingerprint)
    source = provenance(
        "measure.perplexity", arguments=reading.to_dict(), inputs={"model": dict(model.identity), "text": text.identity}
    )
    return Measurements(found, source)
