"""The witness: hears every acknowledged commit of the ledger and writes down when, on the host's monotonic clock.

One JSON line a commit: ``{"number": 7, "checksum": "...", "side": "<SMBIOS UUID>", "at": 1234.5}``. The line is in the
file before the ledger gets its answer, so a commit in the file is one that the ledger's user was told of.
Run as ``python -m failback.lab.witness --port 4000 --file witness.jsonl [--drill drill]``.

Drills, for tests of the lab only: the word in the drill file travels with the next answer, and the file is gone. A ledger
that is held (``{"held": side}``) asks for one without a commit; when it did so last is the time of the file ``DRILL.held``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_LONGEST_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Heard:
    number: int
    checksum: str
    side: str
    at: float
    """CLOCK_BOOTTIME seconds of the host."""


def read(path: Path) -> list[Heard]:
    """All commits heard so far, in order of arrival. A last line without its end is not counted."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [Heard(**json.loads(line)) for line in lines]


def newest(path: Path, side: str) -> Heard | None:
    """The newest commit heard from a side."""
    heard = [one for one in read(path) if one.side == side]
    return heard[-1] if heard else None


def held_file(drill: Path) -> Path:
    """Touched whenever a held ledger asks."""
    return drill.with_name(drill.name + ".held")


def _drill_word(drill: Path | None) -> str:
    """The word to be sent now, once; empty when there is none."""
    if drill is None or not drill.exists():
        return ""
    word = drill.read_text(encoding="ascii").strip()
    drill.unlink()
    return word


async def _listen(port: int, output: TextIO, drill: Path | None) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                told = json.loads(line)
                if "held" not in told:
                    told["at"] = time.clock_gettime(time.CLOCK_BOOTTIME)
                    output.write(json.dumps(told) + "\n")
                    output.flush()
                elif drill is not None:
                    held_file(drill).touch()
                writer.write(f"ok {_drill_word(drill)}".strip().encode("ascii") + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            print(f"a line from the ledger broke: {error}", flush=True)
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=_LONGEST_LINE_BYTES)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Hears the ledger's acknowledged commits and writes them down.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--drill", type=Path)
    arguments = parser.parse_args()
    with arguments.file.open("a", encoding="utf-8") as output:
        asyncio.run(_listen(arguments.port, output, arguments.drill))


if __name__ == "__main__":
    main()
