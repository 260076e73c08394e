"""Measuring: gists by the gap they recover, memories by what they answer over long histories."""
