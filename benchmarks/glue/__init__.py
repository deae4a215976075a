"""The tasks of GLUE: a teacher and its students."""
