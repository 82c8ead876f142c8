"""Looking inside a run: query, key and value, how channels repeat themselves, what heads attend to, what reuse does."""
