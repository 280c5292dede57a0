"""What the control plane's tests share.

Files:

    mcg_commands  Commands of the MCG in short, and applying them to a state
"""
