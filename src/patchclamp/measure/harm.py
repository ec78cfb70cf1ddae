"""How much worse a metric says a model got: one sign for perplexities, losses and accuracies."""

from __future__ import annotations

import math


def harm(metric: str, plain: float, changed: float) -> float:
    """Above 0 where `changed` is worse than `plain`.

    Of a perplexity: log(changed / plain), the change of log-loss per token in nats, comparable between texts; NaN unless
    both are above 0. Of a loss: the change. Of anything else (accuracies): minus the change.
    """
    if metric == "perplexity":
        return math.log(changed / plain) if plain > 0 and changed > 0 else math.nan
    return changed - plain if metric.endswith("loss") else plain - changed


def harm_unit(metric: str) -> str:
    """What the harm of a metric is counted in, for headings."""
    if metric == "perplexity":
        return "nats per token"
    return "nats" if metric.endswith("loss") else f"{metric} lost"
