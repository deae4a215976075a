"""Models that people already have, against the code that they come with."""
