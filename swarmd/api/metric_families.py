"""Short ways to Prometheus' metric families, for collectors that read them off at a scrape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from swarmd.histogram import Histogram

__all__ = ["counter", "gauge", "histogram", "info"]

Sample = tuple[Sequence[str], float]


def counter(
    name: str, text: str, value: float | Iterable[Sample], labels: Sequence[str] = ()
) -> Metric:
    """A counter, named without `_total`; with `labels` a value for each of their values."""
    return _filled(CounterMetricFamily(name, text, labels=labels), value)


def gauge(
    name: str, text: str, value: float | Iterable[Sample], labels: Sequence[str] = ()
) -> Metric:
    """A value that goes up and down."""
    return _filled(GaugeMetricFamily(name, text, labels=labels), value)


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, value: float | Iterable[Sample]
) -> Metric:
    samples = [((), value)] if isinstance(value, int | float) else value
    for labels, number in samples:
        family.add_metric(list(labels), number)
    return family


def histogram(
    name: str,
    text: str,
    values: Iterable[tuple[Sequence[str], Histogram]],
    labels: Sequence[str] = (),
) -> Metric:
    """Counts by size, for each of the labels' values."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for names, found in values:
        buckets = [(floatToGoString(bound), count) for bound, count in found.buckets()]
        family.add_metric(list(names), buckets, found.sum)
    return family


def info(name: str, text: str, fields: dict[str, str]) -> Metric:
    """Facts as labels of a metric that is always 1."""
    return InfoMetricFamily(name, text, value=fields)
