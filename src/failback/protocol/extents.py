"""The packed extent table of a batch: 16 bytes an extent, little-endian, in application order.

======  ====  ==================================================================
offset  size  field
======  ====  ==================================================================
0       2     disk index (model.stream: below MAXIMUM_DISKS)
2       1     operation (model.stream.Operation)
3       1     flags (model.stream.ExtentFlag)
4       4     length in bytes, a multiple of 512, above 0; longer extents are split
8       8     offset in bytes on the disk, a multiple of 512
======  ====  ==================================================================

The payload of a batch is the concatenation of the DATA extents' bytes in the table's order; ZERO and DISCARD carry none.
Later extents win over earlier ones where they overlap (D3). ``DTYPE_FIELDS`` gives the same layout to numpy on servers.
"""

from __future__ import annotations

import struct

EXTENT = struct.Struct("<HBBIQ")
SECTOR_BYTES = 512
MAXIMUM_EXTENT_BYTES = 0xFFFF_FE00

DTYPE_FIELDS = [("disk", "<u2"), ("operation", "u1"), ("flags", "u1"), ("length", "<u4"), ("offset", "<u8")]
