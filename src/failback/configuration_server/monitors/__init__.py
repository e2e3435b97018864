"""Monitors: looking at everything every few seconds, and telling what changed.

``facts`` reads rows into the facts of :mod:`failback.protection.health` (the rules, pure) · ``watch`` drives the
passes, stores the verdicts and writes one event per change, never one per pass.
"""
