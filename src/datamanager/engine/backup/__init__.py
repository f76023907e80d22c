"""Backing a cluster up."""
