"""Text around tokens: the cut holds the token where it says, at the edges, with special tokens, without offsets."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.atlas.windows import windows
from patchclamp.data.documents import Document


def _wanted(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


class _Slow:
    """A tokenizer that knows no character offsets."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self._fast = fast
        self.decode = fast.decode

    def __call__(self, text: str, **settings: Any) -> Any:
        return self._fast(text, **settings)


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("ab the cat.,\n"), min_size=1, max_size=60), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_token_is_where_the_cut_says(texts: list[str], data: st.DataObject, tiny_tokenizer: Any) -> None:
    documents = [Document(text) for text in texts]
    pairs = []
    for number, text in enumerate(texts):
        ids = tiny_tokenizer(text)["input_ids"]
        pairs += [(number, data.draw(st.integers(1, len(ids) - 1)))] if len(ids) > 1 else []
    for document, position, text, start, end in windows(documents, tiny_tokenizer, _wanted(*pairs), characters=7):
        ids = tiny_tokenizer(texts[document])["input_ids"]
        assert text[start:end] == tiny_tokenizer.decode([ids[position]])
        assert text in texts[document]
        assert max(start, len(text) - end) <= 7


def test_special_tokens_have_an_empty_place_at_the_edge(tiny_tokenizer: Any) -> None:
    text = "The cat sat."
    n = len(tiny_tokenizer(text)["input_ids"])
    found = list(windows([Document(text)], tiny_tokenizer, _wanted((0, 0), (0, n))))
    assert [(start, end) for *_, start, end in found] == [(0, 0), (len(text), len(text))]


def test_documents_without_exemplars_are_passed_over_and_reading_stops_early(tiny_tokenizer: Any) -> None:
    read = []

    def stream() -> Any:
        for number in range(10):
            read.append(number)
            yield Document(f"The cat number {number}")

    found = list(windows(stream(), tiny_tokenizer, _wanted((1, 1), (3, 2), (3, 1))))
    assert [(document, position) for document, position, *_ in found] == [(1, 1), (3, 1), (3, 2)]
    assert read == [0, 1, 2, 3]
    assert list(windows(stream(), tiny_tokenizer, _wanted())) == []


def test_without_a_tokenizer_the_text_is_the_beginning(tiny_tokenizer: Any) -> None:
    assert list(windows([Document("x" * 900)], None, _wanted((0, 5)), characters=50)) == [(0, 5, "x" * 100, None, None)]


def test_a_tokenizer_without_offsets_gives_the_decoded_neighbours(tiny_tokenizer: Any) -> None:
    text = "The cat sat on the mat and looked at the moon."
    ids = tiny_tokenizer(text)["input_ids"]
    slow = windows([Document(text)], _Slow(tiny_tokenizer), _wanted((0, 3), (0, len(ids) - 1)))
    fast = windows([Document(text)], tiny_tokenizer, _wanted((0, 3), (0, len(ids) - 1)))
    assert list(slow) == list(fast)
