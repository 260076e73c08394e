"""Pictures of a working context: a bar for the terminal, a PNG for everything else.

Knows entries by their fields only: where they lie, at which LOD, how many places they take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text


@dataclass(frozen=True, slots=True)
class SpanShown:
    """A run of the timeline: raw (lod 0), as gists (lod >= 1), or left out (places 0)."""

    partition: int
    start: int
    end: int
    lod: int
    places: int
    score: float = 0.0

    @property
    def tokens(self) -> int:
        return self.end - self.start


# Colour of raw tokens, gists by LOD, and what is left out.
_RAW, _LEFT_OUT = "#2a9d8f", "#d9d9d9"
_GISTS = ("#e9c46a", "#f4a261", "#e76f51")


def terminal_bar(
    spans: Sequence[SpanShown], names: Mapping[int, str], columns: int = 72
) -> RenderableType:
    """One line a source: which part of its timeline is raw, in gists, or left out."""
    lines: list[RenderableType] = []
    for partition, name in names.items():
        own = [span for span in spans if span.partition == partition]
        if own:
            lines.append(_line(own, name, columns))
    lines.append(
        Text.assemble(
            ("█", _RAW),
            " raw tokens  ",
            ("█", _GISTS[0]),
            " gists  ",
            ("░", _LEFT_OUT),
            " left out",
        )
    )
    return Group(*lines)


def _line(spans: Sequence[SpanShown], name: str, columns: int) -> Text:
    total = max(span.end for span in spans)
    cells: list[tuple[str, str]] = [("░", _LEFT_OUT)] * columns
    # Shown spans are painted last and take at least one cell: a focus of 160 tokens in a million
    # must not vanish.
    for span in sorted((s for s in spans if s.places), key=lambda s: -s.lod):
        first = span.start * columns // total
        last = max(first + 1, -(-span.end * columns // total))
        for cell in range(first, min(last, columns)):
            cells[cell] = ("█", _colour(span))
    raw = sum(span.tokens for span in spans if span.places and span.lod == 0)
    text = Text(f"{name[:28]:28} ")
    for mark, colour in cells:
        text.append(mark, style=colour)
    text.append(f" {raw:,} of {total:,} tokens")
    return text


def save_png(
    path: Path, spans: Sequence[SpanShown], names: Mapping[int, str], title: str = ""
) -> Path:
    """A picture with one bar a source; needs matplotlib (extra "plot")."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    shown = [(p, n) for p, n in names.items() if any(span.partition == p for span in spans)]
    figure, axes = pyplot.subplots(figsize=(11, 1.4 + 0.42 * len(shown)), layout="constrained")
    for row, (partition, _) in enumerate(shown):
        own = [span for span in spans if span.partition == partition]
        total = max(span.end for span in own)
        axes.barh(row, total, height=0.7, color=_LEFT_OUT)
        # Wide enough to be seen, whatever the length of the timeline.
        least = max(max(span.end for span in spans) / 400, 1)
        for span in own:
            if span.places:
                width = max(span.tokens, least)
                axes.barh(row, width, left=span.start, height=0.7, color=_colour(span))
    axes.set_yticks(range(len(shown)), [name[:40] for _, name in shown])
    axes.invert_yaxis()
    axes.set_xlabel("position on the timeline of the source, tokens")
    axes.set_title(title, fontsize=10, loc="left")
    legend = [
        Patch(color=_RAW, label="raw tokens"),
        Patch(color=_GISTS[0], label="gists"),
        Patch(color=_LEFT_OUT, label="left out"),
    ]
    axes.legend(
        handles=legend, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _colour(span: SpanShown) -> str:
    return _RAW if span.lod == 0 else _GISTS[min(span.lod, len(_GISTS)) - 1]
