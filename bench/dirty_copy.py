"""Copies what a QEMU dirty bitmap names from one NBD export to another: ``dirty_copy.py SOURCE_URI TARGET_URI BITMAP``.

The peer of ``resync_tracked``, as libnbd's users write it: block status by the bitmap's context, then reads and writes with many
requests in flight, then a flush. Run by the system's Python, for which the distribution packages libnbd. Prints the bytes copied.
"""

import select
import sys

import nbd

IN_FLIGHT = 32
MOST_BYTES = 1 << 20
STATUS_BYTES = 1 << 30


def dirty(source: nbd.NBD, context: str) -> list[tuple[int, int]]:
    """(offset, length) of every request."""
    found: list[tuple[int, int]] = []
    size, at = source.get_size(), 0
    while at < size:
        end = at

        def extents(name: str, offset: int, entries: list[int], error: object) -> int:
            nonlocal end
            if name == context:
                for length, flags in zip(entries[::2], entries[1::2], strict=True):
                    if flags & 1:
                        found.extend(
                            (place, min(MOST_BYTES, offset + length - place))
                            for place in range(offset, offset + length, MOST_BYTES)
                        )
                    offset += length
                end = offset
            return 0

        source.block_status(min(STATUS_BYTES, size - at), at, extents)
        at = end
    return found


def wait_for_either(*ends: nbd.NBD) -> None:
    poll, by_descriptor = select.poll(), {end.aio_get_fd(): end for end in ends}
    for descriptor, end in by_descriptor.items():
        direction = end.aio_get_direction()
        events = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
        poll.register(descriptor, events | (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0))
    for descriptor, events in poll.poll():
        end = by_descriptor[descriptor]
        direction = end.aio_get_direction()
        if events & (select.POLLIN | select.POLLHUP) and direction & nbd.AIO_DIRECTION_READ:
            end.aio_notify_read()
        elif events & select.POLLOUT and direction & nbd.AIO_DIRECTION_WRITE:
            end.aio_notify_write()


def main() -> None:
    source_uri, target_uri, bitmap = sys.argv[1:]
    context = f"qemu:dirty-bitmap:{bitmap}"
    source, target = nbd.NBD(), nbd.NBD()
    source.add_meta_context(context)
    source.connect_uri(source_uri)
    target.connect_uri(target_uri)
    ranges = dirty(source, context)
    waiting = list(reversed(ranges))
    under_way = 0

    def read(offset: int, length: int) -> None:
        buffer = nbd.Buffer(length)

        def written(error: int) -> int:
            nonlocal under_way
            under_way -= 1
            return 1

        def done(error: int) -> int:
            target.aio_pwrite(buffer, offset, written)
            return 1

        source.aio_pread(buffer, offset, done)

    while waiting or under_way:
        while waiting and under_way < IN_FLIGHT:
            under_way += 1
            read(*waiting.pop())
        wait_for_either(source, target)
    target.flush()
    print(sum(length for _, length in ranges))


if __name__ == "__main__":
    main()
