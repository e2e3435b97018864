"""The rules: pure functions from facts to decisions. No input, no output, no waiting; time is an argument.

``states`` the item's state table and what may be done in each state · ``readiness`` the checks before a reprotect ·
``operations`` the words of the wire for operations and directions. Further rule sets stand beside them, one a file.
"""
