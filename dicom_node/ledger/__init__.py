"""The ledger: the truth of the node, in SQLite or PostgreSQL; every state moves by compare-and-set."""
