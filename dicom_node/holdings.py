"""What the node already holds of a study: by its rows and files, whoever brought them."""

from collections.abc import Collection

from sqlalchemy import select

from dicom_node.identity import UID
from dicom_node.intake import translated
from dicom_node.ledger.engine import Sessions, reading
from dicom_node.ledger.schema import Instance, Picture, Report, Study
from dicom_node.report.sr_class import SR_CLASSES, uid_in_class
from dicom_node.store import InstanceStore


def held(sessions: Sessions, store: InstanceStore, study_uid: UID, wanted: Collection[UID]) -> set[UID]:
    """Return those of the wanted instances of a study that the node holds, or wrote itself.

    An instance whose file retention removed is not held.

    Raises:
        LedgerUnavailable: it cannot be asked now.
    """
    of_study = Study.study_instance_uid == study_uid
    rows = select(Instance.sop_instance_uid, Instance.path).join(Study).where(of_study, Instance.is_current)
    reports = select(Report.sop_instance_uid).join(Study, Study.id == Report.study_id).where(of_study)
    pictures = (
        select(Picture.sop_instance_uid)
        .join(Report, Picture.report_id == Report.id)
        .join(Study, Study.id == Report.study_id)
        .where(of_study)
    )
    with translated(), reading(sessions) as session:
        kept = [(UID(uid), path) for uid, path in session.execute(rows)]
        written = {UID(uid) for uid in session.scalars(pictures)}
        for uid in session.scalars(reports):
            written |= {uid_in_class(UID(uid), one) for one in SR_CLASSES.values()}
    return (written & set(wanted)) | {uid for uid, path in kept if uid in wanted and store.exists(path)}
