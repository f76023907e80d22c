"""Repositories made by earlier releases, which every later release must open and restore."""
