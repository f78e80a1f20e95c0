"""What stands beside the package: a demonstration."""
