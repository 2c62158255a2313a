"""Example deployments: one small file, or a small package, each; no orchestration logic in them."""
