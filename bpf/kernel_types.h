/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel structures that the capture program reads, with only the fields it reads. preserve_access_index makes
 * libbpf relocate every access to the running kernel's own layout (CO-RE), so order and size here mean nothing.
 */
#ifndef FAILBACK_KERNEL_TYPES_H
#define FAILBACK_KERNEL_TYPES_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct page {
	unsigned long flags;
};

struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};

struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
	unsigned int bi_idx;
	unsigned int bi_bvec_done;
};

struct gendisk;

struct block_device {
	struct gendisk *bd_disk;
	__u32 bd_dev;
};

struct gendisk {
	struct block_device *part0;
};

struct bio_crypt_ctx;

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	__u32 bi_opf;
	__u8 bi_status;
	struct bvec_iter bi_iter;
	void *bi_private;
	struct bio_vec *bi_io_vec;
	struct bio_crypt_ctx *bi_crypt_context; /* exists with CONFIG_BLK_INLINE_ENCRYPTION only */
};

struct request_queue {
	struct gendisk *disk;
};

struct request {
	struct request_queue *q;
	__u32 cmd_flags;
	struct bio *bio;
};

/* Only the names matter; the values come from the running kernel. */
enum req_op {
	REQ_OP_ZONE_APPEND = 7,
};

#pragma clang attribute pop

#define REQ_OP_MASK 0xff
/* These three have had the same values since Linux 4.8; the zone operations moved and are read by CO-RE. */
#define OPERATION_READ 0
#define OPERATION_WRITE 1
#define OPERATION_FLUSH 2
#define OPERATION_DISCARD 3
#define OPERATION_SECURE_ERASE 5
#define OPERATION_WRITE_ZEROES 9

#endif
