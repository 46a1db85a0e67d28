"""The learner: micro-batches, losses, optimiser steps, prequential evaluation and drift detection."""
