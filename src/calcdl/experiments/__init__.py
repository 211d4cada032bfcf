"""Experiments: one file a claim, each run by `python -m calcdl.experiments.NAME [CONFIG.toml] [--flag value ...]`.

A file holds a docstring (the question, the mathematics, the claim, the command), a `Config`, and three functions:
`measure` (studies and nothing else), `check` (do the numbers support the claim?) and `show` (figures). `python -m
calcdl list` names them all.
"""
