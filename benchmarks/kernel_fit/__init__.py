"""The fit of kernel constants, a kind of kernel a file; ``fit_kernels.py`` runs it."""
