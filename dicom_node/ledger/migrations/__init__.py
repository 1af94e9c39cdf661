"""The ledger's history as alembic revisions; `engine.open_ledger` runs them."""
