/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Copying a bio into records of the ring, in the class that fits: 1, 4, 8, 16, 32 or 64 KiB. */
#ifndef FAILBACK_RECORDS_H
#define FAILBACK_RECORDS_H

#include "dirty.h"

static __always_inline __u64 wakeup(void)
{
	__u64 wanted = control.wake_position;
	if (wanted && bpf_ringbuf_query(&ring, BPF_RB_PROD_POS) >= wanted) {
		control.wake_position = 0;
		return BPF_RB_FORCE_WAKEUP;
	}
	return BPF_RB_NO_WAKEUP;
}

struct copy {
	struct bio_vec *vector;
	void *record;
	__u64 base_block, offset, ktime_ns;
	__u32 left, done, index, filled, failed, disk, flags;
};

/*
 * Fills a record of CAPACITY bytes in slices of at most SLICE bytes. A slice begins at most at CAPACITY - SLICE, so that a
 * record with unaligned segments may be closed short; its length may then be no multiple of 512, and the record after it
 * continues in the middle of a sector. One callback for a slice keeps the verifier's work linear.
 */
#define RECORD_CLASS(NAME, CAPACITY, SLICE)                                                                            \
	struct NAME {                                                                                                  \
		struct header header;                                                                                  \
		__u8 data[CAPACITY];                                                                                   \
	};                                                                                                             \
	static long slice_##NAME(__u32 i, struct copy *copy)                                                           \
	{                                                                                                              \
		__u32 filled = copy->filled;                                                                           \
		struct NAME *record = copy->record;                                                                    \
		if (filled > CAPACITY - SLICE || filled >= copy->left)                                                 \
			return 1;                                                                                      \
		struct bio_vec vector;                                                                                 \
		if (bpf_probe_read_kernel(&vector, sizeof vector, copy->vector + copy->index)) {                       \
			copy->failed = 1;                                                                              \
			return 1;                                                                                      \
		}                                                                                                      \
		__u32 n = vector.bv_len - copy->done;                                                                  \
		if (n > SLICE)                                                                                         \
			n = SLICE;                                                                                     \
		if (n > copy->left - filled)                                                                           \
			n = copy->left - filled;                                                                       \
		if (n == 0 || n > SLICE) {                                                                             \
			copy->failed = 1;                                                                              \
			return 1;                                                                                      \
		}                                                                                                      \
		__u64 frame = ((__u64)vector.bv_page - control.vmemmap_base) / bpf_core_type_size(struct page);        \
		void *address = (void *)(control.page_offset_base + (frame << 12) + vector.bv_offset + copy->done);    \
		__u64 n64 = n, filled64 = filled;                                                                      \
		/* the verifier of 6.1 loses 32-bit bounds: establish 1..SLICE and 0..CAPACITY-SLICE in 64 bits */     \
		asm volatile("%0 += -1; %0 &= %1; %0 += 1" : "+r"(n64) : "i"(SLICE - 1));                              \
		asm volatile("" : "+r"(filled64));                                                                     \
		if (filled64 > CAPACITY - SLICE)                                                                       \
			return 1;                                                                                      \
		if (bpf_probe_read_kernel(&record->data[filled64], n64, address)) {                                    \
			copy->failed = 1;                                                                              \
			return 1;                                                                                      \
		}                                                                                                      \
		copy->filled = filled + n;                                                                             \
		copy->done += n;                                                                                       \
		if (copy->done >= vector.bv_len) {                                                                     \
			copy->index++;                                                                                 \
			copy->done = 0;                                                                                \
		}                                                                                                      \
		return 0;                                                                                              \
	}                                                                                                              \
	static __always_inline int fill_##NAME(struct copy *copy)                                                      \
	{                                                                                                              \
		struct NAME *record = bpf_ringbuf_reserve(&ring, sizeof(struct NAME), 0);                              \
		if (!record)                                                                                           \
			return -1;                                                                                     \
		copy->record = record;                                                                                 \
		copy->filled = 0;                                                                                      \
		copy->failed = 0;                                                                                      \
		bpf_loop(CAPACITY / 16, slice_##NAME, copy, 0);                                                        \
		copy->record = 0;                                                                                      \
		__u32 filled = copy->filled;                                                                           \
		if (copy->failed || !filled) {                                                                         \
			copy->failed = 1;                                                                              \
			bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);                                                 \
			return -1;                                                                                     \
		}                                                                                                      \
		record->header.offset = copy->offset;                                                                  \
		record->header.ktime_ns = copy->ktime_ns;                                                              \
		record->header.length = filled;                                                                        \
		record->header.operation = RECORD_DATA;                                                                \
		record->header.disk = copy->disk;                                                                      \
		record->header.extent_bytes = 0;                                                                       \
		copy->offset += filled;                                                                                \
		copy->left -= filled;                                                                                  \
		record->header.flags = (__u8)(copy->flags | (copy->left ? 0 : FLAG_LAST));                             \
		copy->flags = 0;                                                                                       \
		bpf_ringbuf_submit(record, wakeup());                                                                  \
		return 0;                                                                                              \
	}

RECORD_CLASS(record_1k, 1024, 512)
RECORD_CLASS(record_4k, 4096, 4096)
RECORD_CLASS(record_8k, 8192, 4096)
RECORD_CLASS(record_16k, 16384, 4096)
RECORD_CLASS(record_32k, 32768, 4096)
RECORD_CLASS(record_64k, 65536, 4096)

static long copy_record(__u32 i, struct copy *copy)
{
	if (!copy->left)
		return 1;
	int failed;
	if (copy->left > 32768)
		failed = fill_record_64k(copy);
	else if (copy->left > 16384)
		failed = fill_record_32k(copy);
	else if (copy->left > 8192)
		failed = fill_record_16k(copy);
	else if (copy->left > 4096)
		failed = fill_record_8k(copy);
	else if (copy->left > 1024)
		failed = fill_record_4k(copy);
	else
		failed = fill_record_1k(copy);
	if (failed) {
		mark(copy->base_block, copy->offset, copy->left);
		if (copy->failed) {
			count(unreadable_pages, 1);
		} else {
			count(drops, 1);
			count(bytes_dropped, copy->left);
		}
		return 1;
	}
	return 0;
}

static __always_inline int put_header(__u16 disk, __u8 operation, __u64 offset, __u64 bytes, __u64 ktime_ns)
{
	struct header *header = bpf_ringbuf_reserve(&ring, sizeof *header, 0);
	if (!header)
		return -1;
	header->offset = offset;
	header->ktime_ns = ktime_ns;
	header->length = 0;
	header->operation = operation;
	header->flags = FLAG_FIRST | FLAG_LAST;
	header->disk = disk;
	header->extent_bytes = bytes;
	bpf_ringbuf_submit(header, wakeup());
	return 0;
}

#endif
