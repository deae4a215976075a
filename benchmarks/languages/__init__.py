"""The commands of this benchmark:

    python -m benchmarks.languages.corpora      convert treebanks and entities of four languages
    python -m benchmarks.languages.rows         train teachers and students, and quantize them
    python -m benchmarks.languages.scores       score pipelines on the tokens of test sets
    python -m benchmarks.languages.translation  distil vectors of translations

Each has a --help. `spacy distil compare` makes the tables of one language.
"""
