"""The texts of a PDF's pages, by pypdf in a child process: a hostile file can cost the child's life, never ours.

This file run as a program is that child: the PDF's bytes on its standard input, a JSON list of texts, or an
object with the error, on its standard output.
"""

import json
import subprocess
import sys
from pathlib import Path

MEMORY_BYTES = 2**30  # of the child's address space: what a stream may unpack to
SECONDS = 60  # of the child's processor time
PAGES = 5000
CHARACTERS = 20_000_000  # of all pages


class UnreadableError(Exception):
    """Why a document cannot be used."""


def page_texts(path: Path) -> list[str]:
    """The text of every page, "" for a page without any.

    Raises:
        UnreadableError: not a PDF, encrypted, no text in it, or more than the bounds above allow.
    """
    with path.open("rb") as content:
        try:
            child = subprocess.run(
                [sys.executable, "-I", __file__],
                stdin=content,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=2 * SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise UnreadableError(f"reading the PDF took more than {2 * SECONDS} s") from error
    try:
        result = json.loads(child.stdout)
    except ValueError:
        raise UnreadableError(
            f"reading the PDF needs more than {MEMORY_BYTES >> 20} MiB or {SECONDS} s (code {child.returncode})"
        ) from None
    if isinstance(result, str):
        raise UnreadableError(result)
    return result


def _read() -> list[str] | str:
    """In the child: the pages of standard input's PDF, or what is wrong."""
    import io
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    texts: list[str] = []
    try:
        reader = pypdf.PdfReader(io.BytesIO(sys.stdin.buffer.read()))
        if reader.is_encrypted and not reader.decrypt(""):
            return "the PDF is encrypted; give it without a password"
        if len(reader.pages) > PAGES:
            return f"the PDF has {len(reader.pages)} pages, at most {PAGES}; split it"
        length = 0
        for page in reader.pages:
            texts.append(page.extract_text())
            length += len(texts[-1])
            if length > CHARACTERS:
                return f"the PDF has more than {CHARACTERS} characters; split it"
    except MemoryError:
        return f"reading page {len(texts) + 1} of the PDF needs more than {MEMORY_BYTES >> 20} MiB"
    except Exception as error:  # whatever a broken file makes the parser do is the file's fault, and this child's end
        return f"not readable as PDF at page {len(texts) + 1}: {type(error).__name__}: {error}"[:500]
    if not any(text.strip() for text in texts):
        return "the PDF holds no text (scanned pages?); run text recognition on it first"
    return texts


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit()
    sys.stdout.buffer.write(json.dumps(_read()).encode())
