"""Noise optimization with a diffusion prior (DsCo, arXiv 2603.27987), with and without access to the source."""
