"""Every op.

Most modules here bear the name of the function they define: after this import the attribute is the
function, and ``from popxl.ops.add import add`` still finds the module.
"""

from popxl.ops import var_updates
from popxl.ops.add import add, add_
from popxl.ops.call import CallSiteInfo, call, call_with_info
from popxl.ops.code_copy import remote_code_load as remote_code_load
from popxl.ops.conditional import conditional, conditional_with_info
from popxl.ops.host_load import host_load
from popxl.ops.host_store import host_store
from popxl.ops.remote_load import remote_load, remote_load_
from popxl.ops.remote_store import remote_store
from popxl.ops.repeat import repeat, repeat_with_info

__all__ = [
    "CallSiteInfo",
    "add",
    "add_",
    "call",
    "call_with_info",
    "conditional",
    "conditional_with_info",
    "host_load",
    "host_store",
    "remote_load",
    "remote_load_",
    "remote_store",
    "repeat",
    "repeat_with_info",
    "var_updates",
]
