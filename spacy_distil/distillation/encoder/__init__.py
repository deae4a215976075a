"""Encoder distillation: a teacher encoder becomes a smaller student encoder.

Read in this order: `run` (from config to saved student) and `config`; then

- text: `corpus` (`building`, `shards`), `steps`;
- learning: `objectives` (`base` first), `distiller`, `loop` (`schedules`, `memory`, `compilation`,
  `evaluation`, `divergence`, `checkpoint`, `progress`);
- the model card: `card`.
"""
