"""Side-by-side timings of DataManager, its peers and the machine's limits: ``python -m benchmarks --help``."""
