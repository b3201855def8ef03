"""LlamaMan: run many llama.cpp models behind one front door.

Plugin authors import from here and from nowhere deeper; a test keeps first-party plugins to the same rule.
"""
