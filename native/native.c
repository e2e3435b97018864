/* SPDX-License-Identifier: Apache-2.0
 *
 * The inner loops of 4 KiB writes, for failback.runtime.native (ctypes, the interpreter's lock is released for a whole call).
 * Optional: without this library the same is done in Python, with one system call and one change of the lock for each piece.
 * Nothing here allocates or keeps state. The callers prove every range before; a call that fails says how far it came.
 */
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

/* Write `count` pieces of memory, each to its offset. Returns how many were written whole; fewer than `count`: errno says why. */
int64_t failback_write_pieces(int descriptor, int64_t count, const int64_t *offset, const int64_t *length,
			      const int64_t *address)
{
	for (int64_t i = 0; i < count; i++) {
		const char *from = (const char *)(intptr_t)address[i];
		int64_t done = 0;
		while (done < length[i]) {
			ssize_t n = pwrite(descriptor, from + done, (size_t)(length[i] - done), offset[i] + done);
			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0) {
				if (n == 0)
					errno = EIO;
				return i;
			}
			done += n;
		}
	}
	return count;
}

/* Read `count` ranges into memory. Returns how many were read whole; fewer: errno, which is 0 where the file ends. */
int64_t failback_read_pieces(int descriptor, int64_t count, const int64_t *offset, const int64_t *length,
			     const int64_t *address)
{
	for (int64_t i = 0; i < count; i++) {
		char *to = (char *)(intptr_t)address[i];
		int64_t done = 0;
		while (done < length[i]) {
			ssize_t n = pread(descriptor, to + done, (size_t)(length[i] - done), offset[i] + done);
			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0) {
				if (n == 0)
					errno = 0;
				return i;
			}
			done += n;
		}
	}
	return count;
}
