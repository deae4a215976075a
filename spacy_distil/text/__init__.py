"""Documents and plain text from files."""
