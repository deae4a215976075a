"""Ablation of pipeline distillation, and its speed."""
