"""What every room stands on: errors, dotted names, optional packages, files that appear whole, JSON from strangers."""
