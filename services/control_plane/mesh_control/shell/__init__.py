"""Input and output of the control plane; it holds no decision."""
