"""Deployment: a pruned model as a file that is compared before it gets its name, in integers, or generating text."""
