"""Names that Orbax gives to files and directories of a checkpoint."""

TREE_METADATA = "_METADATA"
STEP_METADATA = "_CHECKPOINT_METADATA"
STRINGS = "_strings.json"
UNFINISHED = ".orbax-checkpoint-tmp"
USUAL_ITEMS = ("items", "default", "state", "pytree")
DELETION = "_CHECKPOINT_DELETION"
MARKER = "orbax.checkpoint"
"""The empty file by which saves of Orbax v1 are known."""
COMMITTED = "commit_success.txt"
"""The last object that Orbax writes into an item or a step on gs://."""
