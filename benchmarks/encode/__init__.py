"""Words/s of encoding and of training on torch, against spacy-transformers."""
