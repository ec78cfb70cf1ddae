"""The text that comes with the package: parallel, split, re-openable, without the network."""

from __future__ import annotations

import unicodedata

import pytest

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data import corpus, demo_text, open_corpus
from patchclamp.data.demo import LANGUAGES, demo_documents

SCRIPTS = {"en": "LATIN", "de": "LATIN", "fr": "LATIN", "ru": "CYRILLIC", "zh": "CJK", "ja": "HIRAGANA"}


def test_at_least_200_documents_in_every_language() -> None:
    text = demo_text()
    assert text.labels == LANGUAGES
    assert {label: text.count(label) for label in LANGUAGES} == dict.fromkeys(LANGUAGES, 240)


def test_splits_are_disjoint_cover_everything_and_are_parallel() -> None:
    ids = {split: [d.id for d in demo_text(split=split).documents("en")] for split in ("all", "find", "measure")}
    assert (len(ids["find"]), len(ids["measure"])) == (200, 40)
    assert not set(ids["find"]) & set(ids["measure"])
    assert set(ids["find"]) | set(ids["measure"]) == set(ids["all"])
    for label in LANGUAGES:
        assert [d.id for d in demo_text(split="measure").documents(label)] == ids["measure"]


@pytest.mark.parametrize("label", LANGUAGES)
def test_every_document_is_distinct_and_in_its_script(label: str) -> None:
    texts = [document.text for document in demo_text([label]).documents(label)]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == text.strip()
        assert "\n" not in text
        assert len(text) >= 20
    letters = [unicodedata.name(sign, "?").split()[0] for sign in "".join(texts) if sign.isalpha()]
    common = letters.count(SCRIPTS[label]) / len(letters)
    assert common > (0.9 if label != "ja" else 0.3)


def test_documents_have_an_id_and_every_language() -> None:
    rows = demo_documents()
    assert len({row["id"] for row in rows}) == len(rows)
    assert all({*LANGUAGES, "id", "topic"} <= row.keys() for row in rows)


def test_it_opens_again_from_its_identity_and_notices_another_text() -> None:
    for text in (demo_text(split="find"), demo_text(["fr", "ru"]), demo_text().limited(max_documents=7)):
        again = open_corpus(text.identity)
        assert again.identity == text.identity
    identity = demo_text(["fr"], split="find").identity
    with pytest.raises(MismatchError, match="another version of patchclamp"):
        open_corpus({**identity, "fingerprint": "0" * 64})


def test_text_from_elsewhere_mixed_in_cannot_be_opened_again() -> None:
    mine, theirs = demo_text(["fr"]).identity, corpus(en=["a text"]).identity
    with pytest.raises(InputError, match="can't be opened again"):
        open_corpus({**mine, "labels": {**mine["labels"], **theirs["labels"]}})
    with pytest.raises(InputError, match="can't be opened again"):
        open_corpus(theirs)


def test_unknown_labels_and_splits_are_refused() -> None:
    with pytest.raises(InputError, match="no label 'it'; it has en, de, fr, ru, zh, ja"):
        demo_text(["fr", "it"])
    with pytest.raises(InputError, match="split 'half' asked for; there are all, find, measure"):
        demo_text(split="half")
