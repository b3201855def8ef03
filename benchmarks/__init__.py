"""What `make bench` runs: LlamaMan beside a direct connection and beside nginx, in one run on one machine.

Nothing here is installed with the product and nothing in the product imports it.
"""
