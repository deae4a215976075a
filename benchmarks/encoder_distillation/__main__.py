"""The commands of this benchmark, in the order in which they run:

    python -m benchmarks.encoder_distillation.text     sample text to distil on
    python -m benchmarks.encoder_distillation.rows     distil and train the students
    python -m benchmarks.encoder_distillation.table    make the table of their scores

And one by itself:

    python -m benchmarks.encoder_distillation.embeddings   factorized embeddings before training

Each has a --help.
"""

if __name__ == "__main__":
    print(__doc__)
