/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Dirty blocks: what is not in the ring and has to be read from the disk again. */
#ifndef FAILBACK_DIRTY_H
#define FAILBACK_DIRTY_H

#include "state.h"

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

#endif
