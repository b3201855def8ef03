"""Runtimes: how a LaunchPlan becomes a running llama.cpp server."""
