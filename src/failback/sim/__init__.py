"""Deterministic simulation of the data plane: one process, one seed, virtual time, the production code itself.

``loop`` is the event loop with links and processes that can be killed, ``files`` the file system that loses what was not
synced, ``kernel`` the captured machine, ``world`` puts the real roles on top, ``chaos`` breaks them, ``invariants`` judges.
``python -m failback.sim --seed N`` replays one world exactly (docs/simulation.md).
"""
