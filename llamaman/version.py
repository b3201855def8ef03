"""The one version of the kernel and of every first-party plugin (hatch reads this file)."""

__version__ = "0.1.0"
