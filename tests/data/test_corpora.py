"""Corpora: every kind of text gives the same documents, can be read twice, and bad text is named."""

from __future__ import annotations

import io
import json
import sys
import warnings

import pandas
import polars
import pytest

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.data.documents import Document

TEXTS = ["one cat", 'zwei Hunde, "müde"', "猫が三匹"]


def texts_of(found: Corpus, label: str = "x") -> list[str]:
    return [document.text for document in found.documents(label)]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def sources(tmp_path):
    """The same three documents in every form."""
    rows = [{"n": number, "text": text} for number, text in enumerate(TEXTS)]
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    write(folder / "a.txt", TEXTS[0] + "\n")
    write(folder / "sub" / "b.txt", "\n".join(TEXTS[1:]))
    write(folder / ".hidden", "not this")
    frame = polars.DataFrame(rows)
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_csv(tmp_path / "t[1].csv")
    return {
        "text": write(tmp_path / "t.txt", "\ufeff" + "\r\n\r\n".join(TEXTS) + "\r\n"),
        "jsonl": write(tmp_path / "t.jsonl", "\n".join(json.dumps(row) for row in rows)),
        "json": write(tmp_path / "t.json", json.dumps(rows)),
        "csv": tmp_path / "t[1].csv",
        "parquet": str(tmp_path / "t.parquet"),
        "folder": folder,
        "list": TEXTS,
        "rows": rows,
        "documents": [Document(text) for text in TEXTS],
        "generator": (text for text in TEXTS),
        "factory": lambda: iter(TEXTS),
        "polars": frame,
        "polars column": frame["text"],
        "pandas": frame.to_pandas(),
        "pandas column": pandas.Series(TEXTS),
        "arrow": frame.to_arrow(),
    }


def test_every_kind_of_source_gives_the_same_documents_twice_and_the_same_fingerprint(sources):
    prints = set()
    for kind, value in sources.items():
        found = corpus(x=value)
        assert texts_of(found) == TEXTS, kind
        assert texts_of(found) == TEXTS, kind
        prints.add(found.fingerprint)
    assert len(prints) == 1


def test_datasets_objects_are_read_by_their_rows():
    class Dataset:  # as `datasets` does: len, rows as dicts
        column_names = ("text", "n")

        def __len__(self):
            return len(TEXTS)

        def __iter__(self):
            return iter([{"text": text, "n": 0} for text in TEXTS])

    assert texts_of(corpus(x=Dataset())) == TEXTS


def test_standard_input_can_be_read_again(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    found = corpus(x="-")
    half = found.documents("x")
    assert next(half).text == TEXTS[0]
    assert texts_of(found) == TEXTS  # a second reader beside an unfinished first one
    assert [document.text for document in half] == TEXTS[1:]


def test_blocks_and_whole_files(tmp_path):
    path = write(tmp_path / "t.txt", "\n\na\nb\n\n \nc\n")
    assert texts_of(corpus(x=path, unit="block")) == ["a\nb", "c"]
    assert texts_of(corpus(x=path, unit="file")) == ["a\nb\n\n \nc"]
    assert texts_of(corpus(x=path)) == ["a", "b", "c"]
    with pytest.raises(InputError, match="line, block, file"):
        corpus(x=path, unit="page")


def test_prompt_and_response_columns_give_a_response_span(tmp_path):
    rows = [{"q": "2+2=", "a": "4"}, {"q": "Hi! ", "a": None}, {"q": "", "a": "ok"}]
    path = write(tmp_path / "t.jsonl", "\n".join(json.dumps(row) for row in rows))
    for value in (path, rows):
        found = list(corpus(x=value, prompt="q", response="a").documents("x"))
        assert [document.text for document in found] == ["2+2=4", "ok"]
        assert found[0].spans == {"prompt": ((0, 4),), "response": ((4, 5),)}
        assert found[1].spans["response"] == ((0, 2),)


def test_tag_columns_become_spans(tmp_path):
    rows = [{"text": "big cats sleep", "pos": "ADJ NOUN VERB", "mask": {"animal": [[4, 8]]}}]
    path = write(tmp_path / "t.jsonl", json.dumps(rows[0]))
    for value in (rows, path, polars.DataFrame(rows)):
        (document,) = corpus(x=value, tags=("pos", "mask")).documents("x")
        assert document.spans == {
            "pos=ADJ": ((0, 3),), "pos=NOUN": ((4, 8),), "pos=VERB": ((9, 14),), "animal": ((4, 8),)
        }  # fmt: skip
    with pytest.raises(InputError, match="2 tags in column 'pos' for 3 words"):
        corpus(x=[{"text": "big cats sleep", "pos": ["ADJ", "NOUN"]}], tags="pos")


def test_treebank_sentences_carry_their_annotation(tmp_path):
    def row(number, form, pos, feats="_", misc="_"):
        return "\t".join([number, form, form, pos, "_", feats, "0", "dep", "_", misc])

    lines = [
        "# sent_id = s1", "# text = Du chat, non.", row("1-2", "Du", "_"), row("1", "de", "ADP"), row("2", "le", "DET"),
        row("3", "chat", "NOUN", "Number=Sing", "SpaceAfter=No"), row("4", ",", "PUNCT"), row("4.1", "x", "X"),
        row("5", "non", "ADV", misc="SpaceAfter=No"), row("6", ".", "PUNCT"), "",
        row("1", "Oui", "ADV", misc="SpaceAfter=No"), row("2", "!", "PUNCT"),
    ]  # fmt: skip
    path = write(tmp_path / "t.conllu", "\n".join(lines))
    first, second = corpus(x=path).documents("x")
    assert (first.text, first.id, second.text) == ("Du chat, non.", "s1", "Oui!")
    words = {name: [first.text[a:b] for a, b in ranges] for name, ranges in first.spans.items()}
    assert words == {
        "upos=ADP": ["Du"], "upos=DET": ["Du"], "upos=NOUN": ["chat"], "Number=Sing": ["chat"],
        "upos=PUNCT": [",", "."], "upos=ADV": ["non"], "deprel=dep": ["Du", "chat", ",", "non", "."],
    }  # fmt: skip
    with pytest.raises(InputError, match=r"bad\.conllu, line 1: 2 columns"):
        corpus(x=write(tmp_path / "bad.conllu", "1\tx\n"))


def test_a_label_column_splits_a_table(tmp_path):
    rows = [{"lang": lang, "text": text} for lang, text in zip(("en", "de", "en"), TEXTS, strict=True)]
    path = write(tmp_path / "t.jsonl", "\n".join(json.dumps(row) for row in rows))
    for value in (rows, path, polars.DataFrame(rows)):
        found = corpus(value, label="lang", text="text")
        assert found.labels == ("en", "de")
        assert texts_of(found, "en") == [TEXTS[0], TEXTS[2]]
        assert texts_of(found, "de") == [TEXTS[1]]


def test_a_folder_gives_one_label_per_file_or_subfolder(tmp_path):
    (tmp_path / "fr").mkdir()
    write(tmp_path / "fr" / "1.txt", "un")
    write(tmp_path / "en.txt", "one")
    found = corpus(tmp_path)
    assert {label: texts_of(found, label) for label in found.labels} == {"en": ["one"], "fr": ["un"]}


def test_limits_subsets_and_counts():
    found = corpus({"a-b": ["1", "2", "3"]}, y=["4"], max_documents=2, max_tokens=7)
    assert texts_of(found, "a-b") == ["1", "2"]
    assert (found.count("a-b"), len(found), found.labels) == (2, 2, ("a-b", "y"))
    assert found.limits == {"documents": 2, "tokens": 7}
    assert found.subset(["y"]).labels == ("y",)
    with pytest.raises(InputError, match=r"no label 'z'.*a-b, y"):
        found.subset(["z"])
    with pytest.raises(InputError, match="max_documents=0"):
        corpus(x=["a"], max_documents=0)


def test_the_fingerprint_depends_on_text_spans_order_and_labels_only():
    base = corpus(x=["a", "b"], y=["c"]).fingerprint
    assert corpus(x=[Document("a", id="other"), Document("b")], y=["c"]).fingerprint == base
    others = [
        corpus(x=["ab"], y=["c"]), corpus(x=["b", "a"], y=["c"]), corpus(z=["a", "b"], y=["c"]), corpus(x=["a", "b"]),
        corpus(x=[Document("a", {"s": ((0, 1),)}), "b"], y=["c"]),
    ]  # fmt: skip
    assert base not in {other.fingerprint for other in others}


def test_files_are_reopened_from_an_identity_and_changed_files_are_refused(tmp_path):
    path = write(tmp_path / "t.txt", "a\nb\n")
    found = corpus(x=path, max_documents=2)
    assert Corpus.from_identity(found.identity).fingerprint == found.fingerprint
    write(path, "a\nc\n")
    with pytest.raises(MismatchError, match=r"'x'.*not what was read"):
        Corpus.from_identity(found.identity)
    with pytest.raises(InputError, match="can't be opened again"):
        Corpus.from_identity(corpus(x=["a"]).identity)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "t.txt", "is empty"),
        (b"\n \n", "t.txt", "only blank lines"),
        (b"good\nbad \xe9t\xe9\n", "t.txt", r"line 2: byte 0xe9 at byte 5"),
        (b"\xff\xfea\x00", "t.txt", "UTF-16"),
        (b'{"text": "a"}\n{"text": ', "t.jsonl", "can't be read as json"),
        (b'{"a": "x", "b": "y"}\n', "t.jsonl", "columns a, b; say which"),
        (b"no parquet", "t.parquet", "can't be read as parquet"),
        (b"a,b\n1,2\n", "t.csv", "columns a, b; say which"),
    ],
)
def test_bad_files_are_refused_with_label_and_name(tmp_path, content, name, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        corpus(fr=path).count("fr")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [("missing.txt", "no file at"), ("two words given", "put it in a list"), ([], "no text"), ([3], "item 0 is int"),
     (3, "can't be read from int"), ([""], "no text"), ([{"text": 3}], "holds int 3")],
)  # fmt: skip
def test_bad_values_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        corpus(x=value)


def test_no_label_and_bad_labels_are_refused():
    with pytest.raises(InputError, match="no text was given"):
        corpus()
    with pytest.raises(InputError, match="is no label"):
        corpus({"": ["a"]})
    with pytest.raises(InputError, match="given twice"):
        corpus({"a": ["a"]}, a=["b"])
    with pytest.raises(InputError, match="without a label"):
        corpus(["a"])


def test_two_labels_with_the_same_text_are_warned_about_not_refused(tmp_path):
    path = write(tmp_path / "t.txt", "a\n")
    with pytest.warns(UserWarning, match="'x' and 'y' hold the same text"):
        corpus(x=path, y=path)
    with pytest.warns(UserWarning, match="'x' and 'y' hold the same text"):
        _ = corpus(x=["a"], y=["a"]).fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = corpus(x=["a"], y=["b"]).fingerprint
