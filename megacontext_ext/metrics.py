"""What a store counts, as plain values for any exporter. csrc/storage/README.md lists the names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Metric", "metrics_from"]


@dataclass(frozen=True)
class Metric:
    """One value or histogram; name and labels together are unique in a reading.

    A counter grows from 0 at opening, a gauge says what is now. Of a histogram, `value` is the sum
    of what was recorded, `bucket_counts[i]` how many values were <= `bucket_bounds[i]` and above
    the bound before; the last count, one more than bounds, has the rest.
    """

    name: str
    unit: str  # "us", "bytes", or "1" for plain numbers
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Mapping[str, str]
    value: int
    bucket_bounds: tuple[int, ...] = ()
    bucket_counts: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many values a histogram has."""
        return sum(self.bucket_counts)

    def quantile(self, share: float) -> int:
        """The bound of the bucket that holds this share (0 to 1) of the values; 0 when empty.

        Values above the last bound count as twice that bound.
        """
        left = share * self.count
        for bound, count in zip(
            (*self.bucket_bounds, 2 * self.bucket_bounds[-1]), self.bucket_counts, strict=True
        ):
            left -= count
            if count and left <= 0:
                return bound
        return 0


def metrics_from(fields: Iterable[tuple[Any, ...]]) -> list[Metric]:
    """Metrics from the tuples of the engine."""
    return [Metric(*one) for one in fields]
