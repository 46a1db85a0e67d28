"""The ranker: counters, features, calibration and the compiled kernels that score candidates."""
