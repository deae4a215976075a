"""Pipeline distillation: a student pipeline learns from a trained teacher pipeline.

Read in this order: `run` (from config to saved student), `config`, `student` and `language` (before
its first step), `heads` (how each kind of pipe learns), `hidden` (how the encoder learns),
`recorder` and `cache` (the teacher's records), `distiller` (a step), `evaluation`, `loop`.
"""
