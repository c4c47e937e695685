"""Files, pictures, text and numbers on the host: everything that knows nothing of PopXL."""
