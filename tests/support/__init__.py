"""What tests share and is no network."""
