"""Every speed claim of docs/benchmarks.md, measured again: `python -m benchmarks --help`.

A figure is a ratio or a difference against a named rival that ran on the same machine, interleaved
with what it is compared to. Results are JSON in benchmarks/out/; the page is made from them.
"""
