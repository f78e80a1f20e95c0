"""What criteria share: passes with masks, with gradients, and statistics of what layers read."""
