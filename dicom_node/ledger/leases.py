"""What is on lease is answered by compare-and-set: who does not hold it any more changes nothing."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from dicom_node.ledger.schema import Commitment, Delivery


def answer(
    session: Session,
    table: type[Delivery] | type[Commitment],
    row_id: int,
    token: str,
    held_as: str,
    values: dict[str, object],
) -> bool:
    """Set `values` in the row that is held under `token`, in the state `held_as`; the lease ends unless they give one.

    Returns:
        False: the fence is lost; nothing changed.
    """
    held = session.scalar(
        update(table)
        .where(table.id == row_id, table.lease_token == token, table.state == held_as)
        .values({"lease_token": None, "lease_until": None, **values})
        .returning(table.id)
        .execution_options(synchronize_session=False)
    )
    return held is not None
