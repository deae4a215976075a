"""Tiny teachers and text for them."""

from tests.teachers import one_thread, teacher_dir, text_file  # noqa: F401 (fixtures)
