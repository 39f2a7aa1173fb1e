"""Engines that VRGA is put into, a folder each; none imports another."""
