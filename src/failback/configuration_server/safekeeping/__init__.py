"""Keeping the configuration server safe: its backup, its restore, and beginning anew from what the components know."""
