"""The built-in plugins: loaders, language models, corpora and the built-in world."""
