"""Alembic's environment: runs the revisions on the connection, and in the transaction, that `open_ledger` gives."""

from alembic import context

from dicom_node.ledger.schema import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,  # SQLite too: its DDL is transactional once pysqlite does not commit behind our back
)
with context.begin_transaction():
    context.run_migrations()
