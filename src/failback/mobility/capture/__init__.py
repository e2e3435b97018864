"""Capturing every block write of this machine with eBPF: one ordered stream of all captured disks (docs/capture.md)."""
