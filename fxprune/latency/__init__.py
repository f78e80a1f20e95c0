"""Latency: measured, predicted from a table of measured layers, and met as a budget."""

from fxprune.latency.bench import Bench, BenchRow, bench
from fxprune.latency.record import Latency

__all__ = ["Bench", "BenchRow", "Latency", "bench"]
