"""What is looked for all the time is found by an index, however many studies, deliveries and commitments are done."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_HAS_IMAGES = sa.text("purged_at IS NULL")


def upgrade() -> None:
    """Bring a ledger of the third schema to this revision."""
    op.drop_index("study_by_delivery", table_name="study")
    op.create_index(
        "study_by_delivery",
        "study",
        ["state", "delivered_at"],
        unique=False,
        sqlite_where=_HAS_IMAGES,
        postgresql_where=_HAS_IMAGES,
    )
    op.create_index("delivery_by_state", "delivery", ["state"], unique=False)
    op.create_index("commitment_by_age", "commitment", ["state", "created_at"], unique=False)
