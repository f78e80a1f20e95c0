"""Every small network that more than one file of tests uses."""
