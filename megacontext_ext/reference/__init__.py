"""The meaning of every kernel in plain torch: slow, clear, any floating dtype, nothing compiled."""
