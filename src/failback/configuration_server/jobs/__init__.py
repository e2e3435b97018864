"""Durable jobs: named tasks whose results are recorded one before the next, and that go on after any crash.

A job is a row, its tasks are rows, and those rows are the truth that the API shows. DBOS executes (it notices that this
process died with a job open and runs it again); it decides nothing. ``scenario`` says what a job consists of, ``store``
reads and writes the rows under a generation, ``context`` is what a step sees, ``engine`` is what starts and cancels.
"""
