"""Speed and memory of redist beside its peers, in one run: ``python -m bench``."""
