"""The compiler: the stages in their order, and the ways to go through them."""
