"""Disasters: killed processes, power cuts, pulled drives, full disks, lost connections, and what is left afterwards."""
