"""The component `distil_vectors`: a vector of each text, for search and similarity."""
