"""Exception types that PopXL programs see. `popart` re-exports them under the same names."""


class popart_exception(Exception):
    """A failure found below PopXL's Python layer: shapes, dtypes, attributes, conflicts."""


class popart_internal_exception(popart_exception):
    """A violated invariant of the engine."""


class popart_runtime_error(popart_exception):
    """A check that failed while a session ran."""


class poplibs_exception(Exception):
    """A library failure. The engine never raises it; programs may name it in an except clause."""


class poplar_exception(Exception):
    """Base of device-side failures."""


class poplar_runtime_error(poplar_exception):
    """A device-side failure at run time."""


class poplar_application_runtime_error(poplar_runtime_error):
    """A device-side failure caused by the program, e.g. an fp8 scale out of range."""


class poplar_system_runtime_error(poplar_runtime_error):
    """A device-side failure caused by the system."""


class poplar_recoverable_runtime_error(poplar_system_runtime_error):
    """A system failure after which the device can be used again."""


class poplar_unrecoverable_runtime_error(poplar_system_runtime_error):
    """A system failure after which the device is lost."""


class poplar_unknown_runtime_error(poplar_system_runtime_error):
    """A system failure of unknown kind."""


class OutOfMemoryException(popart_exception):
    """The program does not fit the device."""
