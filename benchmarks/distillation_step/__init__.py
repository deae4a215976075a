"""Speed of a step of encoder distillation, against a loop like the script of DistilBERT."""
