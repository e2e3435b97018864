"""The journal of a replica on a retention volume: redo, undo, the catalogue of recovery points (D7, D9, D13 to D17).

``format`` byte tables · ``last_write`` what a group of batches finally writes · ``redo`` appended item frames ·
``undo`` blocks as they were before · ``catalogue`` points, intervals, positions in SQLite · ``applier`` redo to disks ·
``rollback`` disks to a point and back · ``view`` a point without touching the disks · ``retention`` and ``merge`` thinning ·
``journal`` all of it for one machine. The document is docs/journal-format.md.
"""
