"""The library: model files on disk, their headers, names and presets."""

from llamaman.library.library import Library

__all__ = ["Library"]
