"""The factory `distil_transformer`: an encoder as one shared embedding layer."""
