"""Results: what is kept of a compilation, as plain data with a text and a JSON form."""
