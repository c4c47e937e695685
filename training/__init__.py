"""Training of MAGMA in plain PyTorch: model, data, loop. Nothing here imports popxl."""
