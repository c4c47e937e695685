"""The intermediate representation: records, op definitions, verification. No torch, no numpy arrays computed."""
