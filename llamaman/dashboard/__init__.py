"""The management side: Flask REST blueprints behind the gate."""
