"""The adapter registry: bundles, manifests, signatures, rollouts and the stores that hold them."""
