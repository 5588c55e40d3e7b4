"""Names of files as people are shown them: whatever is in one, it is one line."""

from __future__ import annotations

import unicodedata

JOINER = "\u200d"  # holds the parts of an emoji together


def shown(text: str) -> str:
    """``text`` with everything that would not print escaped: ``\\n``, ``\\x1b``, ``\\u202e``.

    Bytes of a name that are no UTF-8 (surrogates, as ``os.fsdecode`` gives them) become ``\\xff``.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(letter: str) -> str:
    if letter.isprintable() or letter == JOINER or unicodedata.category(letter) == "Zs":
        return letter
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")
