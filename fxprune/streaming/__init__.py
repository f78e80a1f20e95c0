"""Streaming: `fxprune.compile`, in memory or from files to files."""
