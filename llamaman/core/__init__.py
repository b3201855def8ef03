"""The kernel: life of an instance, access, settings, storage contract. No web framework, no Docker, no SQL."""
