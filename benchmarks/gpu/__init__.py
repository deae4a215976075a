"""The GPU tests, and words/s on a GPU."""
