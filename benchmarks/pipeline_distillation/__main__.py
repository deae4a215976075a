"""The commands of this benchmark:

    python -m benchmarks.pipeline_distillation.text         sample unlabelled text
    python -m benchmarks.pipeline_distillation.rows         train the students
    python -m benchmarks.pipeline_distillation.table        make the table of their scores
    python -m benchmarks.pipeline_distillation.speed        measure words/s against plain training
    python -m benchmarks.pipeline_distillation.banking77    convert BANKING77
    python -m benchmarks.pipeline_distillation.accuracy     compare accuracies on one test set

Each has a --help.
"""

if __name__ == "__main__":
    print(__doc__)
