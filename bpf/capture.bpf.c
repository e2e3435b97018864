// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Captures every block write of the chosen disks, with its data, at submission (tp_btf/block_bio_queue) into one ring.
 *
 * Theory of operation: docs/capture.md. What must hold here:
 *  - Ring reservation order extends every happens-before of the machine, so each prefix is a crash-consistent image.
 *  - Nothing is skipped silently: what is not in the ring is marked in `dirty` and counted before the program returns.
 *  - A write enters the in-flight table with the current generation before its ring record is reserved (D8).
 *  - The object must pass the verifier of Linux 6.1: one bpf_loop callback for each copied slice, 64-bit bounds.
 * The layouts of records, control block and maps are repeated in src/failback/mobility/capture/layout.py: change both, and
 * LAYOUT_VERSION with them.
 */
#include <linux/bpf.h>
#include "kernel_types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define BLOCK_SHIFT 16		/* 64 KiB blocks */
#define BLOCKS_PER_PAGE 4096	/* dirty and pending: one byte a block, 4096 to a map element */
#define WORDS 524288		/* overlap words: eight one-byte counters, one for each sector of a 4 KiB page */
#define WORDS_PER_ELEMENT 512
#define TRACKED_BYTES (64u << 20) /* longer extents (discards) have no overlap words */

/* Operations in records: those of the stream (model.stream.Operation), and marks. */
#define RECORD_DATA 1
#define RECORD_ZERO 2
#define RECORD_DISCARD 3
#define RECORD_MARK 0xfe
#define FLAG_FIRST 1
#define FLAG_LAST 2
#define NO_DISK 0xffff

struct control {
	/* written by user space */
	__u64 layout_version;
	__u64 fingerprint[4];
	__u64 vmemmap_base;
	__u64 page_offset_base;
	__u64 generation;
	__u64 wake_position;	/* 0: nobody waits */
	__u64 calibrate_tgid;
	__u64 acknowledged_missed;
	/* written by both */
	__u64 degraded;		/* some byte of dirty may be set */
	/* written by the programs */
	__u64 inflight[8];	/* writes in flight by generation & 7 */
	__u64 calibrated_page;
	__u64 calibrated_count;
	__u64 bios;
	__u64 bytes_written;
	__u64 discards;
	__u64 barriers;
	__u64 drops;
	__u64 bytes_dropped;
	__u64 skipped;
	__u64 unreadable_pages;
	__u64 unsupported;
	__u64 untracked;
	__u64 write_errors;
	__u64 overlaps;
	__u64 overlap_scans;
	__u64 unannounced;
	__u64 healed;
	__u64 splits;
	__u64 largest_bio;
};
struct control control = {};

extern void vmemmap_base __ksym __weak;
extern void page_offset_base __ksym __weak;

struct header {			/* 32 bytes, then `length` bytes of data, then padding up to the record's class */
	__u64 offset;		/* in bytes on the whole disk; of a mark: its number */
	__u64 ktime_ns;
	__u32 length;		/* bytes of data that follow */
	__u8 operation;
	__u8 flags;
	__u16 disk;
	__u64 extent_bytes;	/* ZERO and DISCARD: length of the extent */
};

struct disk {
	__u64 base_block;	/* of this disk in dirty; a multiple of BLOCKS_PER_PAGE */
	__u32 index;
	__u32 padding;
};

struct block_page {
	__u8 block[BLOCKS_PER_PAGE];
};

struct word_page {
	__u64 word[WORDS_PER_ELEMENT];
};

struct inflight_entry {
	__u64 parent;		/* of a split part: the key of the write it belongs to; else 0 */
	__u64 sector;
	__u64 base_block;
	__u32 bytes;
	__u32 left;		/* bytes not yet completed; 0: settled */
	__u32 generation;
	__u32 index;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 20);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 128);
	__type(key, __u32);
	__type(value, struct disk);
} disks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_page);
} dirty SEC(".maps");

/* pending and unlanded belong to user space: they are here to be created, mapped and pinned with the others. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_page);
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_page);
} unlanded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct inflight_entry);
} inflight SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WORDS / WORDS_PER_ELEMENT);
	__type(key, __u32);
	__type(value, struct word_page);
} words SEC(".maps");

#define count(field, n) __sync_fetch_and_add(&control.field, n)

/* ---- dirty blocks ------------------------------------------------------------------------------------------------ */

struct block_walk {
	__u64 block, last, found;
};

static long mark_block(__u32 i, struct block_walk *walk)
{
	if (walk->block > walk->last)
		return 1;
	__u32 key = walk->block / BLOCKS_PER_PAGE;
	struct block_page *page = bpf_map_lookup_elem(&dirty, &key);
	if (page)
		page->block[walk->block & (BLOCKS_PER_PAGE - 1)] = 1;
	else
		count(unsupported, 1);	/* beyond the disk's size at open: the disk grew */
	walk->block++;
	return 0;
}

static __noinline void mark(__u64 base_block, __u64 offset, __u64 bytes)
{
	if (!bytes)
		return;
	struct block_walk walk = { .block = base_block + (offset >> BLOCK_SHIFT),
				   .last = base_block + ((offset + bytes - 1) >> BLOCK_SHIFT) };
	bpf_loop(1 << 22, mark_block, &walk, 0);
	control.degraded = 1;
}

static long check_block(__u32 i, struct block_walk *walk)
{
	if (walk->block > walk->last)
		return 1;
	__u32 key = walk->block / BLOCKS_PER_PAGE;
	struct block_page *page = bpf_map_lookup_elem(&dirty, &key);
	if (page && page->block[walk->block & (BLOCKS_PER_PAGE - 1)]) {
		walk->found = 1;
		return 1;
	}
	walk->block++;
	return 0;
}

static __noinline int any_dirty(__u64 base_block, __u64 offset, __u64 bytes)
{
	struct block_walk walk = { .block = base_block + (offset >> BLOCK_SHIFT),
				   .last = base_block + ((offset + bytes - 1) >> BLOCK_SHIFT) };
	bpf_loop(1 << 22, check_block, &walk, 0);
	return walk.found;
}

/* ---- writes in flight, and overlaps between them (D8, D10) --------------------------------------------------------- */

/*
 * One byte counts the writes in flight of one sector; eight sectors are a word, so that a write is one atomic addition for
 * each 4 KiB page. Words are found by the page's number modulo WORDS: two pages may share one, so a conflict is only a
 * suspicion that a scan of the in-flight table confirms.
 */
struct word_walk {
	__u64 sector, end;	/* in sectors of the concatenated disks */
	__u64 conflict;
};

static __always_inline __u64 *word_of(__u64 sector)
{
	__u64 number = (sector >> 3) & (WORDS - 1);
	__u32 key = number / WORDS_PER_ELEMENT;
	struct word_page *page = bpf_map_lookup_elem(&words, &key);
	if (!page)
		return 0;
	return &page->word[number & (WORDS_PER_ELEMENT - 1)];
}

static __always_inline __u64 sectors_of_word(__u64 sector, __u64 end)
{
	__u64 first = sector & 7, beyond = 8;
	if (end - (sector & ~7ULL) < 8)
		beyond = end - (sector & ~7ULL);
	__u64 unit = 0x0101010101010101ULL;
	return (unit << (8 * (first & 7))) & (unit >> (8 * ((8 - beyond) & 7)));
}

static long enter_word(__u32 i, struct word_walk *walk)
{
	if (walk->sector >= walk->end)
		return 1;
	__u64 unit = sectors_of_word(walk->sector, walk->end);
	__u64 *word = word_of(walk->sector);
	if (!word)
		return 1;
	__u64 before = __sync_fetch_and_add(word, unit);
	walk->conflict |= before & (unit * 255);
	walk->sector = (walk->sector & ~7ULL) + 8;
	return 0;
}

static long leave_word(__u32 i, struct word_walk *walk)
{
	if (walk->sector >= walk->end)
		return 1;
	__u64 unit = sectors_of_word(walk->sector, walk->end);
	__u64 *word = word_of(walk->sector);
	if (!word)
		return 1;
	__sync_fetch_and_add(word, -unit);
	walk->sector = (walk->sector & ~7ULL) + 8;
	return 0;
}

struct scan {
	__u64 key, sector, end;
	__u32 index, found;
};

static long scan_entry(void *map, __u64 *key, struct inflight_entry *entry, struct scan *scan)
{
	if (*key == scan->key || entry->parent || !entry->left || entry->index != scan->index)
		return 0;
	if (entry->sector < scan->end && entry->sector + (entry->bytes >> 9) > scan->sector) {
		scan->found = 1;
		return 1;
	}
	return 0;
}

static __always_inline __u64 global_sector(__u64 base_block, __u64 sector)
{
	return (base_block << (BLOCK_SHIFT - 9)) + sector;
}

/* Takes the entry's overlap words and its place in its generation back; the caller made sure that it happens once. */
static __always_inline void leave(struct inflight_entry *entry)
{
	__u64 bytes = entry->bytes;
	__u64 start = global_sector(entry->base_block, entry->sector);
	struct word_walk walk = { .sector = start, .end = start + (bytes >> 9) };
	if (bytes <= TRACKED_BYTES)
		bpf_loop(TRACKED_BYTES >> 12, leave_word, &walk, 0);
	__sync_fetch_and_add(&control.inflight[entry->generation & 7], -1);
}

/* Returns 1 when another write in flight covers one of the same sectors. */
static __always_inline int enter(__u64 key, __u64 base_block, __u32 index, __u64 sector, __u64 bytes)
{
	__u64 generation = control.generation;
	struct inflight_entry entry = { .sector = sector, .base_block = base_block, .bytes = bytes, .left = bytes,
					.generation = generation, .index = index };
	struct inflight_entry *old = bpf_map_lookup_elem(&inflight, &key);
	if (old && !old->parent && old->left) {	/* its completion was not seen, but the bio's memory is in use again */
		count(healed, 1);
		leave(old);
	}
	if (bpf_map_update_elem(&inflight, &key, &entry, BPF_ANY)) {
		if (old)
			old->left = 0;
		count(untracked, 1);
		mark(base_block, sector << 9, bytes);
		return 0;
	}
	__sync_fetch_and_add(&control.inflight[generation & 7], 1);
	if (bytes > TRACKED_BYTES)
		return 0;
	__u64 start = global_sector(base_block, sector);
	struct word_walk walk = { .sector = start, .end = start + (bytes >> 9) };
	bpf_loop(TRACKED_BYTES >> 12, enter_word, &walk, 0);
	if (!walk.conflict)
		return 0;
	if (control.degraded && any_dirty(base_block, sector << 9, bytes))
		return 1;
	count(overlap_scans, 1);
	struct scan scan = { .key = key, .sector = sector, .end = sector + (bytes >> 9), .index = index };
	bpf_for_each_map_elem(&inflight, scan_entry, &scan, 0);
	return scan.found;
}

/* `bytes` of the bio `key` completed; 0 means all that is left of it. Returns 0 when its submission was not seen. */
static __always_inline int complete(__u64 key, __u32 bytes)
{
	struct inflight_entry *entry = bpf_map_lookup_elem(&inflight, &key);
	if (!entry)
		return 0;
	__u64 parent = entry->parent;
	if (parent) {
		__u32 left = entry->left;
		if (!bytes || bytes >= left) {
			bytes = left;
			entry->left = 0;
			bpf_map_delete_elem(&inflight, &key);
		} else {
			entry->left = left - bytes;
		}
		key = parent;
		entry = bpf_map_lookup_elem(&inflight, &key);
		if (!entry || !bytes)
			return 1;
	} else if (!entry->left) {
		return 0;
	}
	__u32 left = entry->left;
	if (!left)
		return 1;
	if (!bytes || bytes > left)
		bytes = left;
	if (__sync_fetch_and_sub(&entry->left, bytes) == bytes) {
		leave(entry);
		bpf_map_delete_elem(&inflight, &key);	/* when it fails, a settled entry stays until its key is used again */
	}
	return 1;
}

/*
 * A write completes that was not seen at submission: submitted before the program was attached, kept out of a full table,
 * or its run was skipped. Its blocks become dirty before its submitter hears of the completion, so no later write that
 * depends on it is in the stream before the gap opens; until then a disk without it is what a crash could have left.
 */
static __noinline void unannounced(__u64 base_block, __u64 offset, __u64 bytes)
{
	mark(base_block, offset, bytes);
	count(unannounced, 1);
}

static __always_inline int changes_data(__u32 operation)
{
	return operation == OPERATION_WRITE || operation == OPERATION_DISCARD || operation == OPERATION_SECURE_ERASE ||
	       operation == OPERATION_WRITE_ZEROES;
}

/* ---- records -------------------------------------------------------------------------------------------------------- */

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

/* ---- the tracepoints -------------------------------------------------------------------------------------------------- */

static __always_inline struct disk *disk_of(struct bio *bio)
{
	struct block_device *device = bio->bi_bdev;
	if (!device)
		return 0;
	__u32 number = device->bd_disk->part0->bd_dev;
	return bpf_map_lookup_elem(&disks, &number);
}

/* Before the addresses are known: shows user space the struct page of its own write, which is then not captured. */
static __always_inline int calibrate(struct bio *bio)
{
	struct bio_vec vector;
	if (!control.calibrate_tgid || (bpf_get_current_pid_tgid() >> 32) != control.calibrate_tgid)
		return 0;
	if (bpf_probe_read_kernel(&vector, sizeof vector, bio->bi_io_vec))
		return 0;
	control.calibrated_page = (__u64)vector.bv_page;
	control.calibrated_count++;
	return 1;
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(on_queue, struct bio *bio)
{
	__u32 operation = bio->bi_opf & REQ_OP_MASK;
	if (operation == OPERATION_READ)
		return 0;
	struct disk *disk = disk_of(bio);
	if (!disk)
		return 0;
	__u64 bytes = bio->bi_iter.bi_size, sector = bio->bi_iter.bi_sector, base_block = disk->base_block;
	__u32 index = disk->index;
	if (!bytes) {	/* an empty flush, or a zone operation on the whole disk */
		if (operation == OPERATION_WRITE || operation == OPERATION_FLUSH)
			count(barriers, 1);
		else
			count(unsupported, 1);
		return 0;
	}
	__u8 kind = RECORD_DATA;
	if (operation == OPERATION_DISCARD || operation == OPERATION_SECURE_ERASE)
		kind = RECORD_DISCARD;
	else if (operation == OPERATION_WRITE_ZEROES)
		kind = RECORD_ZERO;
	else if (operation != OPERATION_WRITE) {
		count(unsupported, 1);
		return 0;
	}
	__u64 ktime_ns = bpf_ktime_get_ns();
	count(bios, 1);
	if (kind == RECORD_DATA) {
		count(bytes_written, bytes);
		if (bytes > control.largest_bio)
			control.largest_bio = bytes;
	} else {
		count(discards, 1);
	}
	if (enter((__u64)bio, base_block, index, sector, bytes)) {
		count(overlaps, 1);
		mark(base_block, sector << 9, bytes);
	}
	if (calibrate(bio))
		return 0;
	if (control.degraded && any_dirty(base_block, sector << 9, bytes)) {
		count(skipped, 1);
		mark(base_block, sector << 9, bytes);
		return 0;
	}
	if (kind != RECORD_DATA) {
		if (put_header(index, kind, sector << 9, bytes, ktime_ns)) {
			mark(base_block, sector << 9, bytes);
			count(drops, 1);
			count(bytes_dropped, bytes);
		}
		return 0;
	}
	if (bpf_core_field_exists(bio->bi_crypt_context) && bio->bi_crypt_context) {
		mark(base_block, sector << 9, bytes);
		count(unreadable_pages, 1);
		return 0;
	}
	struct copy copy = { .vector = bio->bi_io_vec, .offset = sector << 9, .left = bytes, .base_block = base_block,
			     .done = bio->bi_iter.bi_bvec_done, .index = bio->bi_iter.bi_idx, .ktime_ns = ktime_ns,
			     .flags = FLAG_FIRST, .disk = index };
	bpf_loop(1 << 20, copy_record, &copy, 0);
	return 0;
}

/*
 * Completion. blk-mq clears BIO_TRACE_COMPLETION, so block_bio_complete fires only for bio-based drivers and for bios that
 * failed before they became a request; requests complete by block_rq_complete. A bio that is split after it was queued
 * completes in parts: clones whose bi_private is the parent, and the parent with what is left of it.
 */
SEC("tp_btf/block_split")
int BPF_PROG(on_split, struct bio *bio, unsigned int new_sector)
{
	if ((bio->bi_opf & REQ_OP_MASK) == OPERATION_READ || !disk_of(bio))
		return 0;
	__u64 parent = (__u64)bio->bi_private, key = (__u64)bio;
	__u32 bytes = bio->bi_iter.bi_size;
	struct inflight_entry *entry = bpf_map_lookup_elem(&inflight, &parent);
	if (!entry || !entry->left)
		return 0;
	struct inflight_entry part = { .parent = parent, .bytes = bytes, .left = bytes, .generation = entry->generation,
				       .index = entry->index };
	if (entry->parent) {	/* a part that is split again */
		part.parent = entry->parent;
		if (entry->left >= bytes)
			entry->left -= bytes;
	}
	count(splits, 1);
	if (bpf_map_update_elem(&inflight, &key, &part, BPF_ANY))
		count(untracked, 1);
	return 0;
}

SEC("tp_btf/block_bio_complete")
int BPF_PROG(on_bio_complete, struct request_queue *queue, struct bio *bio)
{
	if (!changes_data(bio->bi_opf & REQ_OP_MASK))
		return 0;
	struct disk *disk = disk_of(bio);
	if (!disk)
		return 0;
	if (bio->bi_status) {
		__u64 key = (__u64)bio;
		__u64 offset = bio->bi_iter.bi_sector << 9, bytes = bio->bi_iter.bi_size;
		struct inflight_entry *entry = bpf_map_lookup_elem(&inflight, &key);
		if (entry && !entry->parent) {	/* the iterator may have been advanced */
			offset = entry->sector << 9;
			bytes = entry->bytes;
		}
		mark(disk->base_block, offset, bytes);
		count(write_errors, 1);
	}
	if (!complete((__u64)bio, 0))
		unannounced(disk->base_block, bio->bi_iter.bi_sector << 9, bio->bi_iter.bi_size);
	return 0;
}

struct request_walk {
	struct bio *bio;
	__u64 base_block;
	__u32 left, error;
};

static long complete_bio(__u32 i, struct request_walk *walk)
{
	struct bio *bio = walk->bio;
	if (!bio || !walk->left)
		return 1;
	__u32 bytes = BPF_CORE_READ(bio, bi_iter.bi_size);
	if (bytes > walk->left)
		bytes = walk->left;
	__u64 offset = BPF_CORE_READ(bio, bi_iter.bi_sector) << 9;
	if (walk->error)
		mark(walk->base_block, offset, bytes);
	if (bytes && !complete((__u64)bio, bytes))
		unannounced(walk->base_block, offset, bytes);
	walk->left -= bytes;
	walk->bio = BPF_CORE_READ(bio, bi_next);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(on_request_complete, struct request *request, int error, unsigned int bytes)
{
	if (!changes_data(request->cmd_flags & REQ_OP_MASK))
		return 0;
	struct request_walk walk = { .bio = request->bio, .left = bytes, .error = error != 0 };
	if (!walk.bio)
		return 0;
	__u32 number = request->q->disk->part0->bd_dev;
	struct disk *disk = bpf_map_lookup_elem(&disks, &number);
	if (!disk)
		return 0;
	walk.base_block = disk->base_block;
	bpf_loop(1 << 16, complete_bio, &walk, 0);
	if (error)
		count(write_errors, 1);
	return 0;
}

/* ---- calls from user space (BPF_PROG_TEST_RUN) ------------------------------------------------------------------------ */

struct call {
	__u64 kind, argument, result, a, b, c;
};
#define CALL_MARK 1	/* argument: the mark's number; a: its ktime; result: 0, or 1 when the ring is full */
#define CALL_SYMBOLS 2	/* a, b: vmemmap_base and page_offset_base, or 0; c: sizeof(struct page) */
#define CALL_SEARCH 3	/* argument: physical address; a: first candidate; b, c: content; result: page_offset_base or 0 */
#define CALL_SETTLE 4	/* argument: key of an in-flight entry of a generation a, to be settled; its blocks become dirty */

struct search {
	__u64 physical, candidate, first, second, found;
};

static long search_step(__u32 i, struct search *search)
{
	__u64 content[2];
	if (!bpf_probe_read_kernel(content, 16, (void *)(search->candidate + search->physical)) &&
	    content[0] == search->first && content[1] == search->second) {
		search->found = search->candidate;
		return 1;
	}
	search->candidate += 1ULL << 30;
	return 0;
}

static __always_inline __u64 read_symbol(const void *symbol)
{
	__u64 value = 0;
	if (symbol && bpf_probe_read_kernel(&value, sizeof value, symbol))
		return 0;
	return value;
}

static __always_inline void settle(__u64 key, __u32 generation)
{
	struct inflight_entry *entry = bpf_map_lookup_elem(&inflight, &key);
	if (!entry || entry->generation != generation)
		return;
	if (entry->parent) {
		bpf_map_delete_elem(&inflight, &key);
	} else {
		mark(entry->base_block, entry->sector << 9, entry->bytes);
		complete(key, 0);
	}
	count(healed, 1);
}

SEC("syscall")
int on_call(struct call *call)
{
	/* Copied in and out at fixed offsets: 6.1 allows no arithmetic on the context pointer. */
	__u64 kind = call->kind, argument = call->argument, result = 0, a = call->a, b = call->b, c = call->c;
	if (kind == CALL_MARK) {
		a = bpf_ktime_get_ns();
		result = put_header(NO_DISK, RECORD_MARK, argument, 0, a) ? 1 : 0;
	} else if (kind == CALL_SYMBOLS) {
		a = read_symbol(&vmemmap_base);
		b = read_symbol(&page_offset_base);
		c = bpf_core_type_size(struct page);
	} else if (kind == CALL_SEARCH) {
		struct search search = { .physical = argument, .candidate = a, .first = b, .second = c };
		bpf_loop(1 << 17, search_step, &search, 0);
		result = search.found;
	} else if (kind == CALL_SETTLE) {
		settle(argument, a);
	}
	call->result = result;
	call->a = a;
	call->b = b;
	call->c = c;
	return 0;
}
