"""The stage's configuration: schema, quantities, loading and overriding. Imports no torch."""
