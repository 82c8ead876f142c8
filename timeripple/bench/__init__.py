"""Benchmarks, one module each. Results are `{"rows": [...], "kind": "measured here", "environment": {...}}`."""
