"""Latency: measured, predicted from a table of measured layers, and met as a budget."""

from fxprune.latency.benchmark import Bench, BenchRow, bench
from fxprune.results.latency import Latency

__all__ = ["Bench", "BenchRow", "Latency", "bench"]
