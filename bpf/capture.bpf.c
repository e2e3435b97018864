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
#include "state.h"
#include "dirty.h"
#include "inflight.h"
#include "records.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

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
