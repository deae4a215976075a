"""Pipeline distillation: a trained teacher pipeline teaches a student pipeline.

Read in this order: `run` (from config to saved student), `config`, `student`, `heads` (how each
kind of pipe learns), `hidden` (how the encoder learns), `cache`, `loop`.
"""
