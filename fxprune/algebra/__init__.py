"""The algebra: channels, and the axes that they label."""
