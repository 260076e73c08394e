"""Figures as SVG text: they lie beside a report, or in it, and need no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_FONT = 'font-family="sans-serif" font-size="12"'
# From low to high score; readable in grey and for the colour-blind.
_LOW, _HIGH = (247, 236, 222), (22, 95, 106)


def length_name(tokens: int) -> str:
    """4096 -> 4k, 1048576 -> 1M, 0 -> "as is"."""
    if tokens == 0:
        return "as is"
    if tokens >= 1_000_000:
        return f"{tokens / 2**20:.3g}M"
    return f"{tokens / 1024:.3g}k" if tokens >= 1024 else str(tokens)


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[float | None]]
) -> str:
    """One square a cell, its value in it; `cells[row][column]` is 0 to 1, or None for no value."""
    left, top, width, height = 90, 46, 58, 30
    parts = [_text(left, 18, title, "start", bold=True)]
    for j, column in enumerate(columns):
        parts.append(_text(left + j * width + width / 2, top - 8, column))
    for i, row in enumerate(rows):
        y = top + i * height
        parts.append(_text(left - 8, y + height / 2 + 4, row, "end"))
        for j, value in enumerate(cells[i]):
            x = left + j * width
            fill = "#eeeeee" if value is None else _colour(value)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{width - 2}" height="{height - 2}" fill="{fill}"/>'
            )
            ink = "#ffffff" if value is not None and value > 0.55 else "#222222"
            shown = "-" if value is None else f"{value:.2f}"
            parts.append(_text(x + width / 2 - 1, y + height / 2 + 3, shown, ink=ink))
    return _svg(left + len(columns) * width + 16, top + len(rows) * height + 12, parts)


def frontier(title: str, x_name: str, points: Sequence[tuple[str, float, float]]) -> str:
    """Named points (x on a logarithmic axis, score 0 to 1) and the line through those that no other
    beats in both."""
    left, top, width, height = 60, 40, 520, 300
    low = math.log10(max(min(x for _, x, _ in points), 1e-3))
    high = max(math.log10(max(x for _, x, _ in points)), low + 0.3)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(max(x, 1e-3)) - low) / (high - low)
        return left + share * width, top + (1 - y) * height

    parts = [_text(left, 18, title, "start", bold=True)]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = top + (1 - tick) * height
        parts.append(f'<path d="M{left} {y}h{width}" stroke="#dddddd"/>')
        parts.append(_text(left - 8, y + 4, f"{tick:.2f}", "end"))
    for power in range(math.floor(low), math.ceil(high) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if low - 0.01 <= math.log10(value) <= high + 0.01:
                parts.append(_text(at(value, 0)[0], top + height + 18, f"{value:g}"))
    parts.append(_text(left + width / 2, top + height + 38, x_name))
    best, steps = -1.0, []
    for _, x, y in sorted(points, key=lambda point: (point[1], -point[2])):
        if y > best:
            best = y
            steps.append(at(x, y))
    line = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(steps))
    parts.append(f'<path d="{line}" fill="none" stroke="#165f6a" stroke-dasharray="4 3"/>')
    used: list[tuple[float, float]] = []
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        px, py = at(x, y)
        label = py + 4
        while any(abs(px - ux) < 110 and abs(label - uy) < 12 for ux, uy in used):
            label += 12
        used.append((px, label))
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="#165f6a"/>')
        parts.append(_text(px + 8, label, name, "start"))
    return _svg(left + width + 130, top + height + 50, parts)


def _colour(value: float) -> str:
    share = min(1.0, max(0.0, value))
    mixed = (round(a + (b - a) * share) for a, b in zip(_LOW, _HIGH, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "middle",
    *,
    bold: bool = False,
    ink: str = "#222222",
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{ink}"{weight}>'
        f"{escape(text)}</text>"
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'{_FONT}>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{inside}\n</svg>\n'
    )
