"""What is on disk: safetensors files, the manifest, and how they are read and checked."""
