"""What a system does in every step, as text and as a picture: found by following its losses once."""
