"""Parts of the RAIL stages of `rail.estimation.algos.hpcphotoz`: data handles, inputs, chunks, MPI ranks.

The stages themselves lie in RAIL's namespace, `rail/` beside this package: a pipeline starts a stage by the
module that defines it, and of a package that is no namespace it would start the command line.
"""
