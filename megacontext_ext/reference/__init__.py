"""The meaning of every kernel, in plain torch: slow, clear, any floating dtype, no compiled code."""
