"""How good is a lens: streams of questions, blocks that hold the answer, gain of what it shows."""
