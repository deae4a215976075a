"""What `convert` knows of other packages: one file for each."""
