"""Memory of encoder distillation while a corpus is tokenized and read."""
