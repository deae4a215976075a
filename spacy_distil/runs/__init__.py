"""Common parts of long runs: output directory, settings, stages, interruption, atomic files."""
