"""Encoder distillation: a teacher encoder becomes a smaller student encoder.

Read in this order: `run` (from the config to the saved student) and `config`; then

- text: `corpus` (`building`, `shards`) and `steps`;
- learning: `objectives` (`base` first), `distiller`, `trainer` (one step) and `loop` (all of them),
  with `schedules`, `meter`, `evaluation`, `divergence`, `checkpoint` and `progress`;
- hardware: `devices`, `processes`, `memory`, `compilation`;
- the model card: `card`.
"""
