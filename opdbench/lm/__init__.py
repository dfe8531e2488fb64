"""Language models: tokenizers, policies, generation, and the world that binds them to a task."""
