"""What each objective of encoder distillation gives."""
