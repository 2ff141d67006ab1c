"""Names that Orbax gives to files and directories of a checkpoint."""

TREE_METADATA = "_METADATA"
STEP_METADATA = "_CHECKPOINT_METADATA"
STRINGS = "_strings.json"
UNFINISHED = ".orbax-checkpoint-tmp"
USUAL_ITEMS = ("items", "default", "state", "pytree")
COMMITTED = "commit_success.txt"
"""The last object that Orbax writes into an item or a step on gs://."""
