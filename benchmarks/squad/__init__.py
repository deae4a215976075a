"""Question answering on SQuAD: a teacher and its students."""
