"""The embedded default: a generated world, the small instruction model that lives in it, and domains to teach it."""
