"""Passes of the network in an attack: its gradient by the images, in chunks, replayed as CUDA graphs."""
