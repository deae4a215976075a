"""Memory of a pipeline over many short documents, against spacy-transformers."""
