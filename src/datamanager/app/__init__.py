"""The composition root: the only package that sees the configuration and knows the concrete classes.

``cli`` and ``web`` call its functions; each takes the Context of a run first.
"""
