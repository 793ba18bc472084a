import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import InputError
from headscope.text import texts
from headscope.text.texts import Document, gather_texts, read_documentation, read_texts

BOOK = "Preface\n\nCHAPTER 1\nOne.\n\nCHAPTER 2\nTwo. No CHAPTER here.\n"


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


def read_names(*paths, **options):
    return [document.name for document in read_texts(paths, **options).documents]


def test_a_file_is_one_long_text_to_be_cut_into_passages(book):
    read = read_texts(book)
    assert read.documents == (Document("book.txt", BOOK, whole=False),)
    assert (read.source, read.unit) == ("book.txt", "passages")
    assert read.sha256 == hashlib.sha256(book.read_bytes()).hexdigest()


def test_a_split_begins_a_document_at_every_match_and_loses_nothing(book):
    read = read_texts(str(book), split="^CHAPTER")
    assert [document.text for document in read.documents] == ["Preface\n\n", BOOK[9:25], BOOK[25:]]
    assert [document.name for document in read.documents] == ["book.txt#1", "book.txt#2", "book.txt#3"]
    assert read.unit == "documents"
    assert read.sha256 == read_texts(book).sha256


@settings(deadline=None, max_examples=60)
@given(st.text("ab\n", max_size=30), st.sampled_from(["a", "^b", r"\n", "$", "(?=ab)", "b*"]))
def test_sections_join_to_the_text(text, pattern):
    sections = texts._sections(text, re.compile(pattern, re.MULTILINE))
    assert "".join(sections) == text
    assert all(sections)


def test_a_file_without_a_match_is_one_document_if_another_file_has_one(book, tmp_path):
    (tmp_path / "other.txt").write_text("no such line")
    assert read_names(book, tmp_path / "other.txt", split="^CHAPTER") == [
        *(f"book.txt#{i}" for i in (1, 2, 3)),
        "other.txt#1",
    ]


def test_json_lines_hold_a_document_each(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "first\u2028still first", "id": 1}, {"text": "  "}, {"text": "<b>third</b>"}]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    read = read_texts([path])
    assert [(d.name, d.text) for d in read.documents] == [
        ("rows.jsonl#1", "first\u2028still first"),
        ("rows.jsonl#3", "<b>third</b>"),
    ]
    assert read.unit == "documents"


def test_a_folder_gives_its_text_files_by_name_and_each_file_once(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.rst", "picture.png", ".hidden.txt", ".git/d.txt", "rows.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    (tmp_path / "folder.txt").mkdir()
    assert read_names(tmp_path) == ["a.md", "b.txt", "rows.jsonl#1", "sub/c.rst"]
    assert read_names(tmp_path / "b.txt", tmp_path) == ["b.txt", "a.md", "rows.jsonl#1", "sub/c.rst"]
    assert read_names(tmp_path / "picture.png") == ["picture.png"]
    read = read_texts([tmp_path, tmp_path / "b.txt"])
    assert read.unit == "passages"
    assert read.sha256 == hashlib.sha256(b"\0".join([b'{"text": "x"}'] * 4)).hexdigest()


def test_a_long_list_of_files_is_named_in_short(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("x")
    assert read_texts(sorted(tmp_path.glob("*"))).source == "0.txt, 1.txt, 2.txt and 2 more"


def test_marks_of_windows_are_not_text(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_texts(path).documents[0].text == "one\ntwo\n"


def test_what_is_not_utf8_is_named_with_its_place(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "schön, Größe".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt' is not UTF-8: byte 0xf6 at offset 6 .*iconv"):
        read_texts([path])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON"),
        ("[1]", r"line 2: expected an object with a string in its field 'text'"),
        ('{"body": "x"}', r"line 2: expected an object with a string in its field 'text'"),
        ('{"text": 3}', r"line 2: expected an object with a string in its field 'text'"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=message):
        read_texts(path)


@pytest.mark.parametrize(
    ("split", "message"),
    [("^PART", r"'\^PART' matches nothing in .*book\.txt"), ("(", r"'\(' is not a regular expression: ")],
)
def test_a_split_that_cannot_be_is_refused(book, split, message):
    with pytest.raises(InputError, match=message):
        read_texts(book, split=split)


def test_no_file_no_text_and_no_text_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file or folder '.*nowhere\.txt' \(looked in "):
        read_texts(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"no text files in .*\.jsonl, \.md, \.rst"):
        read_texts(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"there is no text in .*empty\.txt: every document is empty"):
        read_texts(tmp_path / "empty.txt")


def test_a_file_that_cannot_be_read_is_refused(book, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(book), "read_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot read '.*book\.txt': Permission denied"):
        read_texts(book)


def test_texts_of_the_caller_are_documents_and_one_string_is_a_long_text():
    assert gather_texts(text for text in ("a", "b")).documents == (Document("#0", "a"), Document("#1", "b"))
    assert gather_texts({"x": "a"}).documents == (Document("x", "a"),)
    assert gather_texts("a").documents == (Document("text", "a", whole=False),)
    assert gather_texts(["a", "bc"]).sha256 != gather_texts(["ab", "c"]).sha256
    with pytest.raises(InputError, match="document #0 is a bytes; a document is a str"):
        gather_texts(iter([b"a"]))


@pytest.mark.parametrize("kind", [str, Path])
def test_the_name_of_a_file_is_no_text(book, kind):
    with pytest.raises(InputError, match=r"is a place; hs.read_texts\(place\) reads it"):
        gather_texts(kind(book))


@pytest.mark.parametrize(
    ("texts", "told"), [(3, "documents, an iterable of str, and this is 3"), ([{"text": "a"}], r"as data\['text'\] is")]
)
def test_what_is_no_text_is_refused(texts, told):
    with pytest.raises(InputError, match=told):
        gather_texts(texts)


def test_the_default_corpus_is_pythons_documentation_a_document_per_section():
    read = read_documentation()
    names = Counter(document.name for document in read.documents)
    assert len(names) > 100
    assert set(names.values()) == {1}
    assert names['assert: The "assert" statement'] == names["compound: OR Patterns"] == 1
    essays = [essay for _, essay in sorted(topics.items())]
    assert read.sha256 == hashlib.sha256("\0".join(essays).encode()).hexdigest()
    assert read.documents == read_documentation().documents
    # no more than one heading in each, at its beginning
    for document in read.documents:
        rules = re.findall(r"(?m)^(?:\*{3,}|={3,}|-{3,}|~{3,})$", document.text)
        assert len([rule for rule in rules if len(rule) < 70]) <= 1, document.name


def test_the_default_corpus_loses_no_paragraph_and_repeats_hardly_any():
    paragraphs = [_paragraphs(document.text) for document in read_documentation().documents]
    whole = set().union(*map(_paragraphs, topics.values()))
    assert len(whole) > 1000
    assert whole <= set().union(*paragraphs)
    counts = Counter(paragraph for own in paragraphs for paragraph in own)
    repeated = sum(len(paragraph) for paragraph, count in counts.items() if count > 1)
    assert repeated < 0.005 * sum(map(len, counts))


def _paragraphs(text):
    """Its paragraphs, headings and scraps left out."""
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return {part for part in parts if len(part) > 60 and not re.search(r"[*=~-]{3}$", part)}


def test_a_python_without_its_documentation_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="comes without its documentation"):
        read_documentation()
