/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Writes in flight: generations for the grace wait (D8), and overlaps between them (D10). */
#ifndef FAILBACK_INFLIGHT_H
#define FAILBACK_INFLIGHT_H

#include "dirty.h"

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
		entry->overlapped = 1;
		scan->found = 1;
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

/*
 * The blocks of an overlapped write become dirty twice: here, and when it completes. A round of re-reading may take them
 * between its entry and its ring record (a processor stolen in mid-program): the record then lies behind p0 although the
 * device may hold the other write's content, which the round reads. Marked again at the end, before its submitter hears of
 * it, the blocks are left to a later round, whose p0 lies behind both records.
 */
static __always_inline void set_overlapped(__u64 key)
{
	struct inflight_entry *entry = bpf_map_lookup_elem(&inflight, &key);
	if (entry)
		entry->overlapped = 1;
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
		if (old->overlapped)
			mark(old->base_block, old->sector << 9, old->bytes);
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
	if (control.degraded && any_dirty(base_block, sector << 9, bytes)) {
		set_overlapped(key);
		return 1;
	}
	count(overlap_scans, 1);
	struct scan scan = { .key = key, .sector = sector, .end = sector + (bytes >> 9), .index = index };
	bpf_for_each_map_elem(&inflight, scan_entry, &scan, 0);
	if (scan.found)
		set_overlapped(key);
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
		if (entry->overlapped)
			mark(entry->base_block, entry->sector << 9, entry->bytes);
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

#endif
