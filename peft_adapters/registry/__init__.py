"""The registry of published adapters: bundles, manifests, signatures, stores and the rollout document."""
