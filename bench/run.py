"""``make bench``, or ``BENCH=name make bench``: runs the benches, writes results/<name>.json and the tables of README.md.

``SCALE=small`` tries everything at an eighth of the size; ``PAIRS=n`` sets how often (5). Run it as root on a quiet machine.
``BENCH=tables`` only writes README.md anew from the results that are there.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import results  # noqa: E402

ORDER = (
    "initial_sync", "initial_sync_1gbit", "resync_untracked", "resync_tracked", "capture_overhead", "capture_fixed_rate",
    "lag", "churn", "points", "history_space", "growth", "group_hold",
)  # fmt: skip
"""The rows of the table; those without a module here are not written yet."""
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"


def write_readme() -> None:
    found = results.read_all(HERE / "results")
    path = HERE / "README.md"
    head, _, rest = path.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    path.write_text(f"{head}{BEGIN}\n{results.table(found, ORDER)}\n{results.details(found, ORDER)}{END}{tail}")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is removed
    wanted = os.environ.get("BENCH", "").split() or [name for name in ORDER if (HERE / f"{name}.py").exists()]
    failed = []
    for name in wanted:
        if name == "tables":
            continue
        print(f"--- {name}", flush=True)
        try:
            result = importlib.import_module(f"bench.{name}").bench()
        except Exception:  # the others are still worth having
            traceback.print_exc()
            failed.append(name)
            continue
        results.write(result, HERE / "results")
        if not result.ok:
            failed.append(name)
        write_readme()
    write_readme()
    print(results.table(results.read_all(HERE / "results"), ORDER))
    if failed:
        print("not met or not finished:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
