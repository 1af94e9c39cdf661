"""Objects: which instances are in the object store."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_IS_UNSHARED = sa.text("shared_at IS NULL")


def upgrade() -> None:
    """Bring a ledger of the fifth schema to this revision."""
    op.add_column("instance", sa.Column("shared_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "instance_unshared",
        "instance",
        ["state", "id"],
        unique=False,
        sqlite_where=_IS_UNSHARED,
        postgresql_where=_IS_UNSHARED,
    )
