"""One op in a tiny model each, a file a family of ops."""
