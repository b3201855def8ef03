"""The kernel: life of an instance, access, settings, storage. No web framework, no Docker, no SQL."""
