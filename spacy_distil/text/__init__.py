"""Read documents and plain text from files."""
