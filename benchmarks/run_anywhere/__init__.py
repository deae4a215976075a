"""Speed, latency, cold start and memory against spacy-transformers and spaCy's CNN pipeline."""
