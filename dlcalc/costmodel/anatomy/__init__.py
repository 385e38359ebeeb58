"""One plan taken apart: every matmul, collective, operation's activations and pipeline stage behind an estimate.

Everything here comes out of the functions that the estimate itself is the sum of; nothing is estimated a second way.
For a point, whose quantities leave this module as plain numbers.
"""
