"""Test restores: a backup is proven by bringing it back.

plan        everything that can be checked before a byte is written: programs, account, room
workplace   the folder of one drill, written down before it is made
clone       the restored directory as a server that keeps to itself
counts      every table and large object of every database is read
amcheck     indexes against their tables, tables against their own rules
run         all of it in order, and nothing left behind, however it ends
leftovers   what a killed drill left: its server, its folder
marks       ``proven`` on the backup in the repository
"""
