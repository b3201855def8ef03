"""The front door: every public port, and the one path that every inference request takes."""
