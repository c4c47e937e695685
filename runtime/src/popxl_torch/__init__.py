"""The engine below PopXL: IR, passes, plans, executors, backends, kernels."""
