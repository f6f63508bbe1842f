"""The wide-area network of the benches: what it delays is what was asked for."""
