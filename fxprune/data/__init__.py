"""Calibration data: batches, the call of a model that a batch becomes, and a call without its values."""
