"""The factory `distil_transformer`: an encoder as a shared embedding layer."""
