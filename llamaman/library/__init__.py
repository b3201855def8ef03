"""The library: model files on disk, their headers, names and presets."""
