"""The inputs of a job: found by what names them, and opened as streams of their bytes."""
