"""What the control plane's tests share."""
