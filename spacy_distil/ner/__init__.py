"""The factory `distil_ner`: entities by token classification."""
