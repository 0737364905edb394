import pickle

import numpy as np
import pyarrow as pa
import pytest

from protocol.helpers import check_stream, round_trip, written
from redist.errors import UnsignedPayload
from redist.protocol import (
    dumps,
    function_of,
    load_function,
    loads,
    loads_inline,
    pack_arguments,
    pack_error,
    pack_spec,
    unpack_arguments,
    unpack_error,
    unpack_spec,
    use_secret,
)

LOADED = []


def loaded():
    LOADED.append(1)


class Tell:
    def __reduce__(self):
        return loaded, ()


VALUE = {"a": np.arange(20_000), "b": Tell()}


def test_round_trips(secret):
    assert round_trip(5) == 5
    assert round_trip([1, "x"]) == [1, "x"]
    assert (round_trip({"a": np.arange(20_000)})["a"] == np.arange(20_000)).all()
    assert round_trip("x" * 5000) == "x" * 5000
    assert load_function(function_of(len).data)([1]) == 1
    data = pack_arguments((1,), {}).data
    spec = pack_spec("hash", data, 3)
    assert unpack_arguments(unpack_spec("hash", spec).args) == ((1,), {})
    assert unpack_spec("hash", spec).flags == 3
    assert isinstance(unpack_error(pack_error(ValueError("x")))[0], ValueError)
    check_stream(written(dumps({"a": np.arange(20_000)})))


def test_a_function_that_was_known_before_is_signed_anew():
    use_secret(None)
    assert load_function(function_of(abs).data)(-1) == 1
    use_secret("secret")
    try:
        assert load_function(function_of(abs).data)(-1) == 1
    finally:
        use_secret(None)


def test_the_inline_limit_counts_the_signature(secret):
    for size in range(4000, 4100):
        payload = dumps(b"x" * size)
        assert payload.inline is None or len(payload.inline) <= 4096


@pytest.mark.parametrize("signed_with", [None, "another"])
def test_what_is_not_signed_is_not_loaded(signed_with):
    LOADED.clear()
    use_secret(signed_with)
    inline = dumps(Tell()).inline
    stream = written(dumps(VALUE))
    function = function_of(lambda: None).data
    spec = pack_spec("hash", pack_arguments((Tell(),), {}).data)
    error = pack_error(ValueError(Tell()))
    LOADED.clear()
    use_secret("sesame")
    try:
        for load in (
            lambda: loads_inline(inline),
            lambda: loads(memoryview(stream)),
            lambda: load_function(function),
            lambda: unpack_spec("hash", spec),
        ):
            with pytest.raises(UnsignedPayload, match="REDIST_SECRET"):
                load()
        assert isinstance(unpack_error(error)[0], UnsignedPayload)
    finally:
        use_secret(None)
    assert LOADED == []


def test_any_altered_byte_is_noticed(secret):
    inline = dumps(Tell()).inline
    for position in range(len(inline)):
        altered = bytearray(inline)
        altered[position] ^= 1
        with pytest.raises(UnsignedPayload):
            loads_inline(bytes(altered))
    spec = pack_spec("hash", pack_arguments((1,), {}).data, 1)
    for position in range(len(spec)):
        altered = bytearray(spec)
        altered[position] ^= 1
        with pytest.raises(UnsignedPayload):
            unpack_spec("hash", bytes(altered))


def test_a_spec_is_signed_for_its_function(secret):
    spec = pack_spec("hash", pack_arguments((1,), {}).data)
    with pytest.raises(UnsignedPayload):
        unpack_spec("other", spec)


def test_one_kind_is_not_another(secret):
    with pytest.raises(UnsignedPayload):
        load_function(dumps(len).inline)
    with pytest.raises(UnsignedPayload):
        loads_inline(function_of(len).data)


def test_a_buffer_cannot_change_its_size(secret):
    data = written(dumps({"a": np.arange(20_000)}))
    with pa.ipc.open_stream(data) as reader:
        schema, batches = reader.schema, list(reader)
    assert len(batches) == 2
    with pytest.raises(UnsignedPayload):
        other = written(dumps({"a": np.arange(20_001)}))
        head = 8 + int.from_bytes(data[4:8], "little")
        loads(memoryview(data[:head] + other[8 + int.from_bytes(other[4:8], "little") :]))
    assert len(bytes.fromhex(schema.metadata[b"hmac"].decode())) == 32


def test_without_a_secret_signed_things_load(secret):
    inline, stream, function = dumps(5).inline, written(dumps("x" * 5000)), function_of(abs).data
    spec = pack_spec("hash", pack_arguments((1,), {}).data)
    use_secret(None)
    assert loads_inline(inline) == 5
    assert loads(memoryview(stream)) == "x" * 5000
    assert load_function(function)(-1) == 1
    assert unpack_arguments(unpack_spec("hash", spec).args) == ((1,), {})


def test_arrays_and_tables_are_not_pickled(secret):
    use_secret(None)
    array, table = written(dumps(np.arange(5000))), written(dumps(pa.table({"a": range(5000)})))
    use_secret("sesame")
    assert loads(memoryview(array)).sum() == 12_497_500
    assert loads(memoryview(table)).num_rows == 5000


def test_the_variable_is_read_at_import():
    import os
    import subprocess
    import sys

    code = "from redist.protocol import dumps; print(len(dumps(5).inline))"
    lengths = [
        int(
            subprocess.run(
                [sys.executable, "-c", code],
                check=True,
                capture_output=True,
                env={**os.environ, "REDIST_SECRET": s},
            ).stdout
        )
        for s in ("", "x")
    ]
    assert lengths == [len(pickle.dumps(5, 5)), len(pickle.dumps(5, 5)) + 34]
