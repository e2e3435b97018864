/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs share with user space: control block, record header, maps. Layouts repeated in layout.py. */
#ifndef FAILBACK_STATE_H
#define FAILBACK_STATE_H

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
	/* written by user space, once: which ring's knowledge was handed over to this one, and of which disks (bit: index) */
	__u64 predecessor_ring;
	__u64 carried_disks;
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
	__u32 sequence;		/* of user space: which device this was, under a number that another may get */
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
	__u16 index;
	__u16 overlapped;	/* another write to its sectors was in flight with it: its blocks are dirty again at its end */
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

#endif
