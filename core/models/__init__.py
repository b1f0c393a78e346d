"""Finished models on disk: bundle, ensemble, registry, exchange files."""
