"""Objects to bytes and back: payloads, functions, arguments, run specs, errors, and the keys of calls.

Knows neither Redis nor files nor clients. What it must never do: copy a large buffer on the way, or unpickle anything that
is not signed while a secret is in force. Heavy libraries are imported only when a value of theirs is met.
"""

from redist.protocol.arguments import Arguments, pack_arguments, unpack_arguments
from redist.protocol.calls import PackedCall, pack_calls
from redist.protocol.functions import Function, function_of, load_function
from redist.protocol.futures import FutureLike, collect, register_future_type
from redist.protocol.inside import names_inside
from redist.protocol.keys_of_calls import key_of_call
from redist.protocol.names import function_label, type_name
from redist.protocol.payload import Payload, dumps, loads, loads_inline
from redist.protocol.serialize import (
    Serialize,
    dask_deserialize,
    dask_serialize,
    deserialize,
    register_serialization,
    serialize,
    to_serialize,
)
from redist.protocol.signing import use_secret
from redist.protocol.sizes import INLINE_LIMIT, format_bytes, sizeof
from redist.protocol.specs import Spec, pack_spec, unpack_spec
from redist.protocol.task_errors import RemoteTraceback, StandIn, pack_error, unpack_error

__all__ = [
    "INLINE_LIMIT",
    "Arguments",
    "Function",
    "FutureLike",
    "PackedCall",
    "Payload",
    "RemoteTraceback",
    "Serialize",
    "Spec",
    "StandIn",
    "collect",
    "dask_deserialize",
    "dask_serialize",
    "deserialize",
    "dumps",
    "format_bytes",
    "function_label",
    "function_of",
    "key_of_call",
    "load_function",
    "loads",
    "loads_inline",
    "names_inside",
    "pack_arguments",
    "pack_calls",
    "pack_error",
    "pack_spec",
    "register_future_type",
    "register_serialization",
    "serialize",
    "sizeof",
    "to_serialize",
    "type_name",
    "unpack_arguments",
    "unpack_error",
    "unpack_spec",
    "use_secret",
]
