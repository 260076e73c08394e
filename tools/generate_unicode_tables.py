"""Writes csrc/search/unicode_tables.inc from Python's unicodedata.

Two sorted tables of code point ranges above ASCII: what is part of a word, and what a code point
is folded to (lower case, then the base letter of its canonical decomposition).

    python tools/generate_unicode_tables.py > csrc/search/unicode_tables.inc
"""

from __future__ import annotations

import sys
import unicodedata

FIRST = 0x80
END = 0x110000

# Scripts written without spaces between words: each character is a term, and each pair.
UNSPACED = [
    (0x0E00, 0x0E80),  # Thai
    (0x0E80, 0x0F00),  # Lao
    (0x1000, 0x10A0),  # Myanmar
    (0x1780, 0x1800),  # Khmer
    (0x2E80, 0x2FE0),  # CJK radicals
    (0x3005, 0x3008),  # ideographic iteration marks, zero
    (0x3021, 0x302A),  # Hangzhou numerals
    (0x3040, 0x3100),  # Hiragana, Katakana
    (0x31F0, 0x3200),  # Katakana extensions
    (0x3400, 0x4DC0),  # ideographs, extension A
    (0x4E00, 0xA000),  # ideographs
    (0xF900, 0xFB00),  # compatibility ideographs
    (0x1B000, 0x1B170),  # Kana supplement
    (0x20000, 0x323B0),  # ideographs, extensions B to H
]


def kind(code: int) -> int:
    """0 not in a word, 1 in a word, 2 a word by itself, 3 skipped inside a word."""
    category = unicodedata.category(chr(code))
    if 0x300 <= code < 0x370:
        return 3  # combining accents: "e" + U+0301 is the same word as U+00E9
    if category[0] not in "LNM" or category == "No":
        return 0
    return 2 if any(start <= code < end for start, end in UNSPACED) else 1


def fold(code: int) -> int:
    """One code point for `code`: full width made normal, accents dropped, lower case."""
    if 0xAC00 <= code < 0xD7A4 or kind(code) == 2:
        return code  # Hangul syllables decompose into letters; the syllable is the unit
    form = "NFKD" if 0xFF00 <= code < 0xFFF0 else "NFD"
    base = unicodedata.normalize(form, chr(code))
    letters = [c for c in base if not 0x300 <= ord(c) < 0x370]
    character = letters[0] if len(letters) == 1 else chr(code)
    lower = character.lower()
    return ord(lower[0]) if len(lower) in (1, 2) else ord(character)


def ranges(values: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Runs of consecutive code points with an equal, non-zero value as (start, end, value)."""
    found: list[tuple[int, int, int]] = []
    for code, value in values:
        if value == 0:
            continue
        if found and found[-1][1] == code and found[-1][2] == value:
            found[-1] = (found[-1][0], code + 1, value)
        else:
            found.append((code, code + 1, value))
    return found


def fold_runs() -> list[tuple[int, int, int, int]]:
    """(start, end, stride, delta): code points of a run, `stride` apart, fold to code + delta."""
    runs: list[tuple[int, int, int, int]] = []
    for code in range(FIRST, END):
        if kind(code) in (0, 3) or fold(code) == code:
            continue
        delta = fold(code) - code
        if runs:
            start, end, stride, last_delta = runs[-1]
            gap = code - (end - 1)
            if delta == last_delta and (gap == stride or (end - start == 1 and gap == 2)):
                runs[-1] = (start, code + 1, gap, delta)
                continue
        runs.append((code, code + 1, 1, delta))
    return runs


def write(name: str, type_name: str, rows: list[tuple[int, ...]]) -> None:
    print(f"constexpr {type_name} {name}[] = {{")
    line = "   "
    for row in rows:
        cell = " {" + ", ".join(f"{v:#x}" if i < 2 else str(v) for i, v in enumerate(row)) + "},"
        if len(line) + len(cell) > 98:
            print(line)
            line = "   "
        line += cell
    print(line)
    print("};")


def main() -> None:
    print(
        f"// Unicode {unicodedata.unidata_version}. Written by tools/generate_unicode_tables.py;"
        " do not edit."
    )
    print("// clang-format off")
    write("kWordRanges", "WordRange", ranges([(code, kind(code)) for code in range(FIRST, END)]))
    write("kFoldRuns", "FoldRun", fold_runs())
    print("// clang-format on")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
