"""Drop-ins for other projects, one file each: `patch()` puts the fused ops in place of a project's own functions.

Importing one of these files imports nothing of the project; `patch()` does.
"""
