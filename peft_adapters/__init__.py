"""The model: encoder, frozen-prefix cache, ranker, learner, evaluation, bundle, registry."""
