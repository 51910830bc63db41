"""What this machine can do: `dfkd doctor`. One file per kind of check, `examine` runs them all.

Nothing heavy is imported here; the checks import what they look at, and none of them fails because of it.
"""
