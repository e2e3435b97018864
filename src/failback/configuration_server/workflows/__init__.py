"""The workflows: reprotect, its completion, failback, commit, cancel, a recovery point on demand, and the end of protection.

One file each: plain step functions and the scenario that names them. Decisions that need no waiting stand in
``failback.protection``; ``world`` is what a step reaches outside the database; ``pieces`` are steps' shared moves.
"""
