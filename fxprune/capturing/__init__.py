"""Capture: from a PyTorch model to one flat graph of ATen operators over its own tensors."""
