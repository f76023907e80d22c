"""Tests of rescue.py, README.txt and the printed kit, on repositories made by the real repository package."""
