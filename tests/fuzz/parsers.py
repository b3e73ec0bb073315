"""The parsers under test as functions of bytes, each called as fedsens itself calls it."""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
from functools import cache, partial
from pathlib import Path

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    MetricRecord,
    RecordDict,
)

from fedsens.cli._inspect import describe, load_model
from fedsens.config import FedSensConfig
from fedsens.crypto import (
    PRESETS,
    Aggregator,
    CkksParameters,
    Decryptor,
    OneTimeSecret,
    parse_batch,
)
from fedsens.crypto._wire import to_wire
from fedsens.flower import _records as records
from fedsens.flower._agreement import KeyAgreement
from fedsens.flower._client import Client
from fedsens.flower._maps import MapCollection
from fedsens.flower._updates import Updates, schema_of
from fedsens.flower._uploads import _key_answer
from fedsens.keys import (
    FederationKey,
    PendingUpload,
    UploadRecords,
    locked_key_in,
    open_model,
    read_roster,
    unseal,
)
from fedsens.keys._records import RunRecord
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol import (
    KeyReply,
    KeyRequest,
    KeySumRequest,
    MapRequest,
    MaskReply,
    MaskRequest,
    ModelHeader,
    PlainMapHeader,
    RekeyReply,
    RekeyRequest,
    UploadHeader,
    load_checkpoint,
    sum_answers,
)
from fedsens.sensitivity import load_map

from . import fixed
from .frames import split

KINDS = (
    *(ModelHeader, UploadHeader, PlainMapHeader, KeySumRequest, KeyRequest),
    *(KeyReply, MapRequest, MaskRequest, MaskReply, RekeyRequest, RekeyReply),
)
SETS = {each.digest: each for each in map(CkksParameters.preset, PRESETS)}
CHEAP = 2**20  # bytes of scrypt up to which a mutated lock is tried
MODEL_PARTS = (records.MASK, records.MODEL_MASK, records.CIPHERTEXT, records.KEY_SUM)
RECORDS = ("update-3.begun", "update-3.secret", "update-3.list", "update-3.answer", "model.json")


def parameters_of(data: bytes) -> CkksParameters:
    """The preset whose digest a batch names, else that of the model."""
    return SETS.get(data[8:24], fixed.PARAMETERS)


def batch(data: bytes) -> None:
    """A ciphertext batch, up to its residues."""
    found = parse_batch(data, parameters_of(data))
    for _, words in found.chunks():
        to_wire(words, found.parameters)


def aggregate(data: bytes) -> None:
    """A ciphertext batch, added: as the first summand and as the second."""
    aggregator = Aggregator(parameters_of(data))
    aggregator.add(data)
    aggregator.add(data)
    aggregator.result()


def decrypt(data: bytes) -> None:
    """A ciphertext batch, through SEAL to its values."""
    parameters = parameters_of(data)
    contributions = parse_batch(data, parameters).contributions
    secret = OneTimeSecret.from_array(
        min(contributions, 2) * fixed.secret().to_array(), contributions
    )
    Decryptor(parameters, fixed.DECRYPTED_IN).decrypt(data, secret)


def mask(data: bytes) -> None:
    """A mask."""
    EncryptionMask.from_bytes(data).to_bytes()


def envelope(data: bytes) -> None:
    """An envelope from the fixed sender to the fixed recipient, for one key of the run."""
    (sender, _), (recipient, _) = fixed.identities()
    public = sender.public_key().public_bytes_raw()
    FederationKey.from_bytes(unseal(data, recipient, public, str(fixed.RUN), fixed.KEY_INDEX))


def key(data: bytes) -> None:
    """The federation's key, from an envelope or a file."""
    FederationKey.from_bytes(data).derive(b"fuzz")


def locked(data: bytes) -> None:
    """A key file, locked or not. Costly locks are read, but not tried."""
    found = locked_key_in(data)
    if found is None or 128 * found.scrypt.n * found.scrypt.r <= CHEAP:
        FederationKey.load(_file(data), lambda: fixed.PASSPHRASE)


def roster(data: bytes) -> None:
    """A roster."""
    read_roster(_file(data))


def header(data: bytes) -> None:
    """A header: the first byte chooses its kind."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    records.take_header(_headed(data[1:]), kind).to_json()


def layout(data: bytes) -> None:
    """A layout."""
    found = ParameterLayout.from_json(data.decode(errors="replace"))
    _ = (found.digest, found.dtype, found.size, found.to_json())


def arrays(data: bytes) -> None:
    """The arrays of an ArrayRecord: pairs of a name and the bytes of a NumPy file."""
    records.to_arrays(_arrays(split(data)))


def model_message(data: bytes) -> None:
    """A model as a client gets it: header, mask, the model's mask, sum, sum of keys, arrays."""
    first, *frames = _frames(data, 5)
    content = _headed(first)
    _put(content, MODEL_PARTS, frames[:4])
    content["arrays"] = _arrays(frames[4:])
    model, _ = records.take_model(content)
    open_model(model, fixed.key(), 1)


def update_message(data: bytes) -> None:
    """A trained model as the server gets it: header, examples, ciphertext, arrays."""
    first, examples, ciphertext, *frames = _frames(data, 3)
    content = _headed(first)
    _put(content, (records.CIPHERTEXT,), [ciphertext])
    content["arrays"] = _arrays(frames)
    (value,) = struct.unpack("<d", examples.ljust(8, b"\0")[:8])
    content["metrics"] = MetricRecord({"num-examples": value})
    parties = {fixed.NODE: fixed.cohort()[0]}
    updates = Updates(fixed.phase(), fixed.layout(), fixed.mask(), parties)
    told, got = updates._read(content)  # as Updates.take, which would log what is refused
    uploads = updates._new_group(schema_of(content)).uploads
    uploads.check(fixed.NODE, told)
    updates._check_weight(content, told)
    uploads.add(fixed.NODE, told, got)


def map_sum(data: bytes) -> None:
    """A sum of maps as the mask holder gets it: the request, the sum, the sum of keys."""
    first, *frames = _frames(data, 3)
    content = _headed(first)
    _put(content, (records.MAP, records.MAP_KEY_SUM), frames[:2])
    request = records.take_header(content, MaskRequest)
    if request.aggregate is not None:
        total = records.take_aggregate(content, request.aggregate, records.MAP, records.MAP_KEY_SUM)
        _client().open_map(total, _received())


def plain_map(data: bytes) -> None:
    """A map in plaintext as the server gets it: header, scores."""
    first, scores = _frames(data, 2)[:2]
    content = _headed(first)
    _put(content, (records.PLAIN_MAP,), [scores])
    MapCollection(FedSensConfig(maps="plain"), KeyAgreement(1.0), 8)._add_plain(content)


def key_sum_request(data: bytes) -> None:
    """The list of contributors as a client gets it before it gives its padded secret."""
    request = records.take_header(_headed(data), KeySumRequest)
    _reset_records()
    _client().uploads.answer_key_sum(request)


def key_answer(data: bytes) -> None:
    """A padded secret as the server gets it."""
    found = _key_answer(fixed.NODE, RecordDict({records.KEY_ANSWER: _record(data)}))
    if found is not None:
        sum_answers([found, found])


def upload_record(data: bytes) -> None:
    """A client's own record of an upload: the first byte chooses which."""
    name = RECORDS[data[0] % len(RECORDS)] if data else RECORDS[0]
    _reset_records(name, data[1:])
    uploads = UploadRecords(_client_folder())
    if name == "update-3.begun":
        (_client_folder() / "update-3.secret").unlink()
        uploads.keep("update", 3, fixed.pending())
    elif name == "update-3.secret":
        uploads.pending("update", 3)
    elif name == "model.json":
        model = RunRecord(_client_folder())
        _ = (model.last_round(), model.last_model_round(), model.last_key_index())
    else:
        uploads.answer("update", 3, _list_digest(), _padded)


def checkpoint(data: bytes) -> None:
    """A checkpoint."""
    load_checkpoint(_file(data))


def model_file(data: bytes) -> None:
    """An exported model or a checkpoint as ``fedsens open`` reads it."""
    open_model(load_model(_file(data)), fixed.key(), 1)


def map_file(data: bytes) -> None:
    """A file of a sensitivity map."""
    load_map(_file(data))


def inspect(data: bytes) -> None:
    """Any file, as ``fedsens inspect`` reads it."""
    describe(_file(data))


@cache
def _descriptor() -> int:
    descriptor = os.memfd_create("fuzz")
    os.fchmod(descriptor, 0o600)
    return descriptor


def _file(data: bytes) -> Path:
    """A private file in memory with this content."""
    os.ftruncate(_descriptor(), 0)
    os.pwrite(_descriptor(), data, 0)
    return Path(f"/proc/self/fd/{_descriptor()}")


@cache
def _client() -> Client:
    """The first of the fixed clients, with its files in a folder in memory where there is one."""
    memory = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(partial(shutil.rmtree, top, ignore_errors=True))
    lasting, of_run = fixed.identities()[0]
    names = {"state-dir": "state", "identity-file": "identity", "key-file": "key"}
    config = {f"fedsens-{option}": str(top / name) for option, name in names.items()}
    config |= {"fedsens-min-ratio": "0", "fedsens-min-contributors": "2"}
    client = Client(Context(fixed.RUN, fixed.NODE, config, RecordDict(), {}))
    contents = {top / "identity": lasting, client.store.folder / "run-identity": of_run}
    for path, identity in contents.items():
        _write_private(path, identity.private_bytes_raw())
    fixed.key().save(top / "key")
    return client


def _client_folder() -> Path:
    return _client().store.folder


def _received() -> records.Received:
    header = fixed.sent()
    return records.Received(fixed.layout(), fixed.mask(), header, fixed.mask(), "arrays", "")


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _list_digest() -> bytes:
    return fixed.contributors().digest(fixed.update_context().digest)


def _padded(pending: PendingUpload) -> bytes:
    return pending.secret.astype("<u2").tobytes()


@cache
def good_records() -> dict[str, bytes]:
    """A client's records as it writes them itself, of each name in :data:`RECORDS`."""
    with tempfile.TemporaryDirectory() as folder:
        path, uploads = Path(folder), UploadRecords(Path(folder))
        uploads.begin("update", 3, fixed.update_context().digest)
        uploads.keep("update", 3, fixed.pending())
        held = (path / "update-3.secret").read_bytes()
        uploads.answer("update", 3, _list_digest(), _padded)
        RunRecord(path).record_model(3, 2, 0, "ab" * 32)
        return {n: (path / n).read_bytes() for n in RECORDS} | {"update-3.secret": held}


def _reset_records(name: str = "", data: bytes = b"") -> None:
    """The records of a client that has sent its update, one of them replaced."""
    folder = _client_folder()
    for record in RECORDS:
        (folder / record).unlink(missing_ok=True)
    wanted = {"update-3.begun", "update-3.secret", "model.json"}
    for record in wanted - {name}:
        _write_private(folder / record, good_records()[record])
    if name == "update-3.answer":
        _write_private(folder / "update-3.list", good_records()["update-3.list"])
    if name:
        _write_private(folder / name, data)


def _frames(data: bytes, least: int) -> list[bytes]:
    frames = split(data)
    return frames + [b""] * (least - len(frames))


def _headed(text: bytes) -> RecordDict:
    record = ConfigRecord({"json": text.decode(errors="replace")})
    return RecordDict({records.HEADER: record})


def _record(data: bytes) -> ArrayRecord:
    return records.bytes_to_record(data)


def _put(content: RecordDict, names: tuple[str, ...], frames: list[bytes]) -> None:
    """Records of bytes; an empty frame is none."""
    for name, data in zip(names, frames, strict=True):
        if data:
            content[name] = _record(data)


def _arrays(frames: list[bytes]) -> ArrayRecord:
    pairs = zip(frames[::2], frames[1::2], strict=False)
    return ArrayRecord({
        name.decode(errors="replace"): Array("float32", (1,), "numpy.ndarray", data)
        for name, data in pairs
    })
