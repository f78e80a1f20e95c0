"""Reports: what a compilation did, as data, as text and as pages."""
