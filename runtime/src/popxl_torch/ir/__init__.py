"""The intermediate representation: records, op definitions, verification. No torch."""
