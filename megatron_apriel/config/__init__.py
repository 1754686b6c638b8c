"""The stage's configuration: schema, loading and overriding. Imports no torch."""
