"""The low level that programs reach through ``_pb_*`` attributes. Not a public interface."""
