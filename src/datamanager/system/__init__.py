"""Seams to the operating system: processes, services, unit files and scheduled tasks."""
