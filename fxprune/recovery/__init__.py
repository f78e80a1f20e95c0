"""Recover: new values for what is kept, so that it makes up for what goes."""
