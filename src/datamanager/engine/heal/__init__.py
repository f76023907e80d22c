"""Mending a repository from another that holds the same packs."""
