"""The masked twin: the original at full size, run as if the removed channels were not there; and the certificate."""
