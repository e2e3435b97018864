"""The witness: hears every acknowledged commit of the ledger and writes down when, on the host's monotonic clock.

One JSON line a commit: ``{"number": 7, "checksum": "...", "side": "<SMBIOS UUID>", "at": 1234.5}``. The line is in the
file before the ledger gets its answer, so a commit in the file is one that the ledger's user was told of.
Run as ``python -m failback.lab.witness --port 4000 --file witness.jsonl``.
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


async def _listen(port: int, output: TextIO) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                told = json.loads(line)
                told["at"] = time.clock_gettime(time.CLOCK_BOOTTIME)
                output.write(json.dumps(told) + "\n")
                output.flush()
                writer.write(b"ok\n")
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
    arguments = parser.parse_args()
    with arguments.file.open("a", encoding="utf-8") as output:
        asyncio.run(_listen(arguments.port, output))


if __name__ == "__main__":
    main()
