"""What the papers claim, each tried in miniature over seeds; `python -m benchmarks.claims` writes docs/claims.md."""
