"""The mathematics of the first layer: no files, no command line, no progress."""
