"""What long runs share: output directory, settings, stages, interruption, atomic files."""
