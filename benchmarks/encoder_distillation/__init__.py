"""Ablation of the objectives of encoder distillation."""
