"""The protocol: what server and clients say to each other, and what is kept in files.

Nothing here holds a key or can decrypt; that is :mod:`fedsens.keys`, which clients alone load.
"""

from fedsens.protocol._aggregate import (
    KEY_BYTES,
    Aggregate,
    AggregateHeader,
    plausible_mean,
    sum_answers,
    tag_count,
)
from fedsens.protocol._checkpoint import (
    CHECKPOINT_TYPE,
    Checkpoint,
    CheckpointFolder,
    Figures,
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from fedsens.protocol._context import Kind, RoundContext
from fedsens.protocol._contributors import (
    LEAST_CONTRIBUTORS,
    Contributor,
    Contributors,
    Party,
    check_weight,
    cohort_digest,
)
from fedsens.protocol._headers import (
    Header,
    KeyReply,
    KeyRequest,
    KeySumRequest,
    MapRequest,
    MaskOrigin,
    MaskReply,
    MaskRequest,
    MetricsForm,
    ModelHeader,
    PlainMapHeader,
    RekeyReply,
    RekeyRequest,
    UploadHeader,
)
from fedsens.protocol._model import (
    MODEL_TYPE,
    ProtectedModel,
    load_protected,
    save_model,
    save_protected,
)
from fedsens.protocol._report import Phase, PhaseReport, ReportFile, read_reports
from fedsens.protocol._traffic import largest_count, mean_width, ratio_within, traffic

__all__ = [
    "CHECKPOINT_TYPE",
    "KEY_BYTES",
    "LEAST_CONTRIBUTORS",
    "MODEL_TYPE",
    "Aggregate",
    "AggregateHeader",
    "Checkpoint",
    "CheckpointFolder",
    "Contributor",
    "Contributors",
    "Figures",
    "Header",
    "KeyReply",
    "KeyRequest",
    "KeySumRequest",
    "Kind",
    "MapRequest",
    "MaskOrigin",
    "MaskReply",
    "MaskRequest",
    "MetricsForm",
    "ModelHeader",
    "Party",
    "Phase",
    "PhaseReport",
    "PlainMapHeader",
    "Progress",
    "ProtectedModel",
    "RekeyReply",
    "RekeyRequest",
    "ReportFile",
    "RoundContext",
    "UploadHeader",
    "check_weight",
    "cohort_digest",
    "largest_count",
    "load_checkpoint",
    "load_protected",
    "mean_width",
    "plausible_mean",
    "ratio_within",
    "read_reports",
    "save_checkpoint",
    "save_model",
    "save_protected",
    "sum_answers",
    "tag_count",
    "traffic",
]
