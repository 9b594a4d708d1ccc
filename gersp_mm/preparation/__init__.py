"""Offline work on data sets: unpack, check, split, tile, pack."""
