"""The stored format: keys, containers, packs, layers, manifests, leases, and the Repository that joins them.

``docs/format.md`` is the specification; every number here has its reason there.
"""
