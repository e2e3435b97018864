"""Coverage-guided fuzzing of one target, or of all in turn, with atheris (libFuzzer): ``python fuzz/run.py [TARGET] SECONDS``.

Memory and time of each input are bounded (``-rss_limit_mb``, ``-malloc_limit_mb``, ``-timeout``): what breaks a bound fails like
an exception does. A failing input is left in ``fuzz/findings/TARGET/``; put it into ``fuzz/regressions/TARGET/`` when it is
mended: the tests replay those. New inputs that reach new code are kept in ``fuzz/corpus/`` (not committed).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests/doubles")]


def _fuzz(name: str, seconds: int, corpus: Path) -> None:
    import atheris  # imported here: the parent process only starts others

    with atheris.instrument_imports(include=["failback"]):
        import fuzz_targets
    target = fuzz_targets.BY_NAME[name]
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    findings = HERE / "findings" / name
    findings.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=1024", "-malloc_limit_mb=300", "-max_len=400000",
        f"-artifact_prefix={findings}/", "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], lambda data: fuzz_targets.attack(target, data))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="all")
    parser.add_argument("seconds", nargs="?", type=int, default=60, help="for all of them together")
    wanted = parser.parse_args()
    corpus = HERE / "corpus"
    if wanted.target != "all":
        place = corpus / wanted.target
        place.mkdir(parents=True, exist_ok=True)
        _fuzz(wanted.target, wanted.seconds, place)
        return 0
    import fuzz_targets

    names = [target.name for target in fuzz_targets.TARGETS]
    each = max(1, wanted.seconds // len(names))
    failed = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="failback-fuzz-") as scratch:  # libFuzzer ends without cleaning up
            done = subprocess.run(
                [sys.executable, __file__, name, str(each)], check=False, capture_output=True, text=True,
                env={**os.environ, "TMPDIR": scratch},
            )  # fmt: skip
        executed = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(
            f"{name}: {executed[0].split()[-1] if executed else '?'} inputs, {'ok' if not done.returncode else 'FAILED'}"
        )
        if done.returncode:
            failed.append(name)
            print(done.stdout[-3000:], done.stderr[-3000:], sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
