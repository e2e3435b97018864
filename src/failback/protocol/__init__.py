"""The replication protocol, sans-io: bytes in, messages out, and back. The document is docs/protocol.md.

``messages`` what is said · ``extents`` the packed table of what a batch writes · ``frames`` how messages become bytes ·
``connection`` the state machine of one link (handshake, order, limits).
"""
