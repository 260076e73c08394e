"""The part of a report that sets the subject against its rivals, and against itself in a window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megacontext.eval.long.document import Block, Heading, Paragraph, Table
from megacontext.eval.long.figures import length_name
from megacontext.eval.long.summary import Results, comparisons, kept_share, shortfalls

# Histories from here on are far larger than any budget; shorter ones often fit in part.
LONG_TOKENS = 65_536


def versus(results: Results, subject: str) -> Iterator[Block]:
    """Differences by length and by category, what is kept of the in-window score, shortfalls."""
    yield Heading(f"{subject} against each rival at equal budget")
    yield Paragraph(
        "Differences over the same examples, paired, each task counting the same; p from sign "
        "flips, adjusted over the table (Holm)."
    )
    by_length = {length_name(n): Results(tuple(results.where(length=n))) for n in results.lengths}
    yield _differences(by_length, subject)
    long = Results(tuple(row for row in results.rows if row["length"] >= LONG_TOKENS))
    by_category = {c: Results(tuple(long.where(category=c))) for c in long.categories}
    if by_category:
        yield Heading(f"By category, histories of {length_name(LONG_TOKENS)} tokens and more", 3)
        yield _differences(by_category, subject)
    yield from _kept(results, subject)
    yield from _shortfalls(results, subject)


def _differences(parts: Mapping[str, Results], subject: str) -> Table:
    rows = []
    for entry in comparisons(parts, subject):
        c = entry.comparison
        rows.append(
            (
                f"{entry.rival}, {entry.part}",
                f"{c.difference.mean:+.3f} [{c.difference.low:+.3f}, {c.difference.high:+.3f}]",
                f"{c.wins}/{c.ties}/{c.losses}",
                f"{entry.adjusted_p:.3f}",
            )
        )
    return Table(("rival", "difference", "wins/ties/losses", "adjusted p"), tuple(rows))


def _kept(results: Results, subject: str) -> Iterator[Block]:
    shortest = min(results.lengths, default=0)
    rivals = [name for name in ("full", subject) if results.answered(method=name, length=shortest)]
    if not rivals or len(results.lengths) < 2:
        return
    yield Heading("Kept of the score in the window", 3)
    yield Paragraph(
        f"The mean of {subject} at each length, as a share of what the plain model (`full`) and "
        f"{subject} itself score at {length_name(shortest)} on the same tasks; other examples, so "
        "the intervals are of unpaired means."
    )
    rows = []
    for length in results.lengths:
        shares = [kept_share(results, subject, length, rival) for rival in rivals]
        rows.append((length_name(length), *("-" if s is None else str(s) for s in shares)))
    yield Table(("length", *(f"of {rival}" for rival in rivals)), tuple(rows))


def _shortfalls(results: Results, subject: str) -> Iterator[Block]:
    yield Heading(f"Where {subject} is not ahead", 3)
    short = shortfalls(results, subject)
    if not short:
        yield Paragraph("On every task and length it scores at least as much as every rival.")
        return
    yield Table(
        ("task, length", "ours", "best rival", "its score", "gold in our view"),
        tuple(
            (
                f"{s.task}, {length_name(s.length)}",
                f"{s.ours:.2f}",
                s.rival,
                f"{s.theirs:.2f}",
                "-" if s.gold_shown is None else f"{s.gold_shown:.2f}",
            )
            for s in short
        ),
    )
