"""Methods whose reading is unverified; names and behaviour may change without a deprecation."""
