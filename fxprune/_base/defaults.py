"""What is used where nothing else is asked for."""

#: Bytes that statistics and values that are alive may use.
MEMORY_LIMIT = 2 << 30

#: Damping of regressions, as a share of the mean variance of a layer's inputs.
RIDGE = 1e-2
