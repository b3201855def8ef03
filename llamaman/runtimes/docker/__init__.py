"""Engines in sibling containers of an engine that speaks the Docker API."""
