"""A document as a row of blocks, written as Markdown with figures beside it or as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    rank: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """`code` in backticks is shown as code."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is left-aligned, all others are right-aligned."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """An SVG under a file name, with the command that makes it."""

    name: str
    svg: str
    command: str


@dataclass(frozen=True, slots=True)
class Code:
    """A command, as it is typed."""

    text: str


Block = Heading | Paragraph | Table | Figure | Code

_STYLE = """body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}
th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}code,pre{background:#f4f2ee;padding:.1em .3em}
pre{padding:.6em;overflow-x:auto}"""


def write_markdown(blocks: Sequence[Block], path: Path) -> None:
    """Write `path` and, beside it, one SVG file a figure."""
    for block in blocks:
        if isinstance(block, Figure):
            (path.parent / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
    path.write_text("\n\n".join(map(_markdown, blocks)) + "\n", encoding="utf-8")


def write_html(title: str, blocks: Sequence[Block], path: Path) -> None:
    """Write `path`, figures inside."""
    body = "\n".join(map(_html, blocks))
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title>\n<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
        encoding="utf-8",
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, rank):
            return f"{'#' * rank} {text}"
        case Paragraph(text):
            return text
        case Code(text):
            return f"```\n{text}\n```"
        case Figure(name, _, command):
            return f"![{name}]({name}.svg)\n\n```\n{command}\n```"
        case Table(head, rows):
            lines = [head, (":--", *["--:"] * (len(head) - 1)), *rows]
            return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _html(block: Block) -> str:
    match block:
        case Heading(text, rank):
            return f"<h{rank}>{escape(text)}</h{rank}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Figure(name, svg, command):
            return f'<figure id="{escape(name)}">{svg}<pre>{escape(command)}</pre></figure>'
        case Table(head, rows):
            top = "".join(f"<th>{_inline(cell)}</th>" for cell in head)
            inside = "".join(
                "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>\n"
                for row in rows
            )
            return f"<table><thead><tr>{top}</tr></thead><tbody>\n{inside}</tbody></table>"


def _inline(text: str) -> str:
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", bold)
