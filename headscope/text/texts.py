"""Documents before tokenisation: from files and folders, from the caller, or from Python's own documentation.

A *document* is the unit of every interval and split: what is said of a model is said over documents.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from headscope.errors import InputError

__all__ = ["Document", "Texts", "gather_texts", "read_documentation", "read_texts"]

_SUFFIXES = (".jsonl", ".md", ".rst", ".text", ".txt")  # what counts as text when a folder is given

# a line and beneath it a rule: how reStructuredText marks a heading
_HEADING = re.compile(r"^(?P<title>\S.*)\n(?P<rule>([*=~^-])\3{2,})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """A named text.

    Attributes:
        name: what it is called.
        text: the text.
        whole: whether it is one document; if not, it is a long text, to be cut into passages once it is tokenised.
        section_of: the file or essay that it is a section of; "" where it is none.
    """

    name: str
    text: str
    whole: bool = True
    section_of: str = ""

    @property
    def work(self) -> str:
        """What it belongs to: documents of one work share their subject."""
        return self.section_of or self.name


@dataclass(frozen=True, slots=True)
class Texts:
    """Documents and where they come from.

    Attributes:
        source: where they come from, in words.
        documents: the documents, in the order of the source.
        sha256: digest of the source's bytes (several files or texts are joined by a zero byte).
    """

    source: str
    documents: tuple[Document, ...]
    sha256: str

    @property
    def unit(self) -> str:
        """What one document is called in tables: "documents", or "passages" where text had to be cut by length."""
        return "documents" if all(document.whole for document in self.documents) else "passages"


def read_texts(paths: str | Path | Iterable[str | Path], split: str | None = None) -> Texts:
    """Documents from files and folders, for `text_batches`.

    Args:
        paths: files of UTF-8 text, JSON Lines (.jsonl: a document per line, in the field "text"), or folders, of which
            the files ending in .jsonl, .md, .rst, .text or .txt are read, sorted by name, hidden ones left out.
        split: regular expression (^ and $ match at lines) where a new document begins in a text file, e.g.
            "^CHAPTER"; what it matches stays. None: a text file is cut into passages of about 1,024 tokens.

    Returns:
        The documents, with the digest of the files' bytes: of one file, what `sha256sum` prints.

    Raises:
        InputError: no such file, not UTF-8, no text in it, or a `split` that is not valid or matches nothing.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    pattern = _compile(split)
    documents: list[Document] = []
    digest, matched = hashlib.sha256(), False
    for number, (name, path) in enumerate(_files(given)):
        raw = _read(path)
        digest.update((b"\0" if number else b"") + raw)
        text = _decode(raw, path)
        if path.suffix == ".jsonl":
            documents += _json_lines(text, name, path)
        elif pattern is None:
            documents.append(Document(name, text, whole=False))
        else:
            matched = matched or pattern.search(text) is not None
            parts = enumerate(_sections(text, pattern), start=1)
            documents += [Document(f"{name}#{i}", part, section_of=name) for i, part in parts]
    if pattern is not None and not matched:
        raise InputError(f"the split {split!r} matches nothing in {_list(given)}; check it, or leave it out")
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise InputError(f"there is no text in {_list(given)}: every document is empty")
    return Texts(_list(path.resolve().name for path in given), tuple(documents), digest.hexdigest())


def gather_texts(texts: str | Mapping[str, str] | Iterable[str]) -> Texts:
    """Documents from what the caller holds: texts, each a document (a mapping names them), or one long text.

    Raises:
        InputError: one of them is not a string, or the text is the name of a file or folder.
    """
    if isinstance(texts, str | Path) and _is_place(texts):
        raise InputError(
            f"texts are the texts themselves, and {str(texts)!r} is a place; hs.read_texts(place) reads it"
        )
    if isinstance(texts, str):
        return Texts("a text", (Document("text", texts, whole=False),), _sha256([texts]))
    if not isinstance(texts, Iterable):
        raise InputError(f"texts are documents, an iterable of str, and this is {texts!r:.60}")
    named = texts.items() if isinstance(texts, Mapping) else ((f"#{i}", text) for i, text in enumerate(texts))
    documents = []
    for name, text in named:
        if not isinstance(text, str):
            columns = f", as data[{next(iter(text))!r}] is of a dataset" if isinstance(text, Mapping) and text else ""
            raise InputError(f"document {name} is a {type(text).__name__}; a document is a str{columns}")
        documents.append(Document(name, text))
    source = f"{len(documents)} text{'' if len(documents) == 1 else 's'}"
    return Texts(source, tuple(documents), _sha256(document.text for document in documents))


def _is_place(text: str | Path) -> bool:
    try:
        return isinstance(text, Path) or ("\n" not in text and Path(text).exists())
    except (OSError, ValueError):  # too long for a name
        return False


def read_documentation() -> Texts:
    """The essays that Python's `help()` shows, a document per section: the default corpus, on every machine.

    A fifth of that text stands there twice (the essay on `try` is also a section of the one on compound statements).
    A section that repeats an earlier one would leak from one side of a split into the other, and is left out.

    Raises:
        InputError: this Python was packaged without its documentation.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise InputError("this Python comes without its documentation (pydoc_data): give a text of your own") from error
    documents: list[Document] = []
    seen: set[str] = set()
    for topic, essay in sorted(topics.items()):
        titles: dict[str, int] = {}
        for section in _sections(essay, _HEADING):
            heading = _HEADING.match(section)
            title = heading["title"] if heading else topic
            body = " ".join(section[heading.end() if heading else 0 :].split())
            titles[title] = titles.get(title, 0) + 1
            if body and body not in seen:
                seen.add(body)
                again = f" ({titles[title]})" if titles[title] > 1 else ""
                documents.append(Document(f"{topic}: {title}{again}", section, section_of=topic))
    source = f"Python {platform.python_version()} documentation (pydoc_data.topics)"
    return Texts(source, tuple(documents), _sha256(essay for _, essay in sorted(topics.items())))


def _sections(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The text cut before every match; nothing is lost."""
    starts = sorted({0, *(match.start() for match in pattern.finditer(text))} - {len(text)})
    return [text[start:stop] for start, stop in pairwise([*starts, len(text)])]


def _compile(split: str | None) -> re.Pattern[str] | None:
    try:
        return None if split is None else re.compile(split, re.MULTILINE)
    except re.error as error:
        raise InputError(f"the split {split!r} is not a regular expression: {error}") from error


def _files(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Every file to read, once, with a name for it that does not depend on where it lies."""
    seen = set()
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no file or folder {str(path)!r} (looked in {Path.cwd()})")
        inside = _inside(path) if path.is_dir() else [(path.name, path)]
        if not inside:
            raise InputError(f"no text files in {str(path)!r}: of a folder, {', '.join(_SUFFIXES)} are read")
        for name, file in inside:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield name, file


def _inside(folder: Path) -> list[tuple[str, Path]]:
    """The text files of a folder and below, by their path from there; hidden ones and hidden folders left out."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.suffix in _SUFFIXES}
    return [(name, file) for name, file in sorted(files.items()) if file.is_file() and not f"/{name}".count("/.")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _decode(raw: bytes, path: Path) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{str(path)!r} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} ({error.reason}); "
            "convert it first, for example with iconv"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _json_lines(text: str, name: str, path: Path) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{str(path)!r}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"{str(path)!r}, line {number}: expected an object with a string in its field 'text'")
        yield Document(f"{name}#{number}", row["text"])


def _sha256(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _list(names: Iterable[str | Path]) -> str:
    named = [str(name) for name in names]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
