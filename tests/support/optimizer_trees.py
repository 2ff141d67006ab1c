"""The trees of every optimizer in every layout, written out."""

from tests.support.states import table

WEIGHTS = {
    "linen": "step i32[]\nparams/params/* x",
    "maxtext": "step i32[]\nparams/params/* x",
    "nnx": "optimizer/step u32[]\nmodel/*/value x",
    "nnx-state": "optimizer/step/value u32[]\nmodel/*/value x",
    "nnx-pure": "optimizer/step u32[]\nmodel/* x",
    "nnx-optimizer": "step/value u32[]\nmodel/*/value x",
    "tunix": "optimizer_state/step/value u32[]\nmodel_params/*/value x",
}

# optimizer: what stands under `opt_state`, under `optimizer/opt_state` in the nnx layouts;
# `nnx-state`, `nnx-optimizer` and `tunix` are `nnx-pure` with `value` under every leaf; maxtext is
# linen unless said
TREES = {
    "adamw": {
        "linen": """
            [0]/count i32[]
            [0]/mu/params/* x
            [0]/nu/params/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx": """
            [0]/count i32[]
            [0]/mu/* x
            [0]/nu/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx-pure": """
            0/count i32[]
            0/mu/* x
            0/nu/* x
            2/count i32[]
        """,
    },
    "adam_flat": {
        "linen": """
            count i32[]
            mu/params/* x
            nu/params/* x
        """,
        "nnx": """
            count i32[]
            mu/* x
            nu/* x
        """,
        "nnx-pure": """
            count i32[]
            mu/* x
            nu/* x
        """,
    },
    "clipped_adamw": {
        "linen": """
            [0] None
            [1]/[0]/count i32[]
            [1]/[0]/mu/params/* x
            [1]/[0]/nu/params/* x
            [1]/[1] None
            [1]/[2]/count i32[]
        """,
        "nnx": """
            [0] None
            [1]/[0]/count i32[]
            [1]/[0]/mu/* x
            [1]/[0]/nu/* x
            [1]/[1] None
            [1]/[2]/count i32[]
        """,
        "nnx-pure": """
            1/0/count i32[]
            1/0/mu/* x
            1/0/nu/* x
            1/2/count i32[]
        """,
        "maxtext": """
            [0] None
            [1]/0/count i32[]
            [1]/0/mu/* x
            [1]/0/nu/* x
            [1]/2/count i32[]
        """,
    },
    "sgd": {
        "linen": """
            [0] None
            [1]/count i32[]
        """,
        "nnx": """
            [0] None
            [1]/count i32[]
        """,
        "nnx-pure": "1/count i32[]",
    },
    "sgd_momentum": {
        "linen": """
            [0]/trace/params/* x
            [1]/count i32[]
        """,
        "nnx": """
            [0]/trace/* x
            [1]/count i32[]
        """,
        "nnx-pure": """
            0/trace/* x
            1/count i32[]
        """,
    },
    "stateless": {"linen": " []", "nnx": "", "nnx-pure": ""},
    "lion": {
        "linen": """
            [0]/count i32[]
            [0]/mu/params/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx": """
            [0]/count i32[]
            [0]/mu/* x
            [1] None
            [2]/count i32[]
        """,
        "nnx-pure": """
            0/count i32[]
            0/mu/* x
            2/count i32[]
        """,
    },
    "muon": {
        "linen": """
            inner_states/adam/inner_state/[0]/count i32[]
            inner_states/adam/inner_state/[0]/mu/params/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/mu/params/dense/kernel None
            inner_states/adam/inner_state/[0]/nu/params/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/nu/params/dense/kernel None
            inner_states/adam/inner_state/[1] None
            inner_states/adam/inner_state/[2]/count i32[]
            inner_states/muon/inner_state/[0]/count i32[]
            inner_states/muon/inner_state/[0]/ns_coeffs f32[3]
            inner_states/muon/inner_state/[0]/mu/params/dense/bias None
            inner_states/muon/inner_state/[0]/mu/params/dense/kernel f32[2,3]
        """,
        "nnx": """
            inner_states/adam/inner_state/[0]/count i32[]
            inner_states/adam/inner_state/[0]/mu/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/mu/dense/kernel None
            inner_states/adam/inner_state/[0]/nu/dense/bias f32[3]
            inner_states/adam/inner_state/[0]/nu/dense/kernel None
            inner_states/adam/inner_state/[1] None
            inner_states/adam/inner_state/[2]/count i32[]
            inner_states/muon/inner_state/[0]/count i32[]
            inner_states/muon/inner_state/[0]/ns_coeffs f32[3]
            inner_states/muon/inner_state/[0]/mu/dense/bias None
            inner_states/muon/inner_state/[0]/mu/dense/kernel f32[2,3]
        """,
        "nnx-pure": """
            inner_states/adam/inner_state/0/count i32[]
            inner_states/adam/inner_state/0/mu/dense/bias f32[3]
            inner_states/adam/inner_state/0/mu/dense/kernel None
            inner_states/adam/inner_state/0/nu/dense/bias f32[3]
            inner_states/adam/inner_state/0/nu/dense/kernel None
            inner_states/adam/inner_state/2/count i32[]
            inner_states/muon/inner_state/0/count i32[]
            inner_states/muon/inner_state/0/ns_coeffs f32[3]
            inner_states/muon/inner_state/0/mu/dense/bias None
            inner_states/muon/inner_state/0/mu/dense/kernel f32[2,3]
        """,
        "maxtext": "as nnx-pure",
    },
    "inject_hyperparams": {
        "linen": """
            count i32[]
            hyperparams/learning_rate f32[]
            hyperparams/b1 f32[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/params/* x
            inner_state/[0]/nu/params/* x
        """,
        "nnx": """
            count i32[]
            hyperparams/learning_rate f32[]
            hyperparams/b1 f32[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/* x
            inner_state/[0]/nu/* x
        """,
        "nnx-pure": """
            count i32[]
            hyperparams/learning_rate f32[]
            hyperparams/b1 f32[]
            inner_state/0/count i32[]
            inner_state/0/mu/* x
            inner_state/0/nu/* x
        """,
        "maxtext": "as nnx-pure",
    },
    "multi_transform": {
        "linen": """
            inner_states/trainable/inner_state/[0]/count i32[]
            inner_states/trainable/inner_state/[0]/mu/params/dense/bias None
            inner_states/trainable/inner_state/[0]/mu/params/dense/kernel f32[2,3]
            inner_states/trainable/inner_state/[0]/nu/params/dense/bias None
            inner_states/trainable/inner_state/[0]/nu/params/dense/kernel f32[2,3]
        """,
        "nnx": """
            inner_states/trainable/inner_state/[0]/count i32[]
            inner_states/trainable/inner_state/[0]/mu/dense/bias None
            inner_states/trainable/inner_state/[0]/mu/dense/kernel f32[2,3]
            inner_states/trainable/inner_state/[0]/nu/dense/bias None
            inner_states/trainable/inner_state/[0]/nu/dense/kernel f32[2,3]
        """,
        "nnx-pure": """
            inner_states/trainable/inner_state/0/count i32[]
            inner_states/trainable/inner_state/0/mu/dense/bias None
            inner_states/trainable/inner_state/0/mu/dense/kernel f32[2,3]
            inner_states/trainable/inner_state/0/nu/dense/bias None
            inner_states/trainable/inner_state/0/nu/dense/kernel f32[2,3]
        """,
        "maxtext": "as nnx-pure",
    },
    "skip_step": {
        "linen": """
            count i32[]
            losses f32[16]
            grad_norms f32[16]
            is_skipped bool[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/params/* x
            inner_state/[0]/nu/params/* x
            inner_state/[1] None
            inner_state/[2]/count i32[]
        """,
        "nnx": """
            count i32[]
            losses f32[16]
            grad_norms f32[16]
            is_skipped bool[]
            inner_state/[0]/count i32[]
            inner_state/[0]/mu/* x
            inner_state/[0]/nu/* x
            inner_state/[1] None
            inner_state/[2]/count i32[]
        """,
        "nnx-pure": """
            count i32[]
            losses f32[16]
            grad_norms f32[16]
            is_skipped bool[]
            inner_state/0/count i32[]
            inner_state/0/mu/* x
            inner_state/0/nu/* x
            inner_state/2/count i32[]
        """,
        "maxtext": "as nnx-pure",
    },
    "nested_chains": {
        "linen": """
            [0]/[0] None
            [0]/[1]/[0]/count i32[]
            [0]/[1]/[0]/mu/params/* x
            [0]/[1]/[0]/nu/params/* x
            [0]/[2]/trace/params/* x
            [1] None
            [2] None
            [3]/[0] None
            [3]/[1]/count i32[]
        """,
        "nnx": """
            [0]/[0] None
            [0]/[1]/[0]/count i32[]
            [0]/[1]/[0]/mu/* x
            [0]/[1]/[0]/nu/* x
            [0]/[2]/trace/* x
            [1] None
            [2] None
            [3]/[0] None
            [3]/[1]/count i32[]
        """,
        "nnx-pure": """
            0/1/0/count i32[]
            0/1/0/mu/* x
            0/1/0/nu/* x
            0/2/trace/* x
            3/1/count i32[]
        """,
        "maxtext": """
            [0]/1/0/count i32[]
            [0]/1/0/mu/* x
            [0]/1/0/nu/* x
            [0]/2/trace/* x
            [1] None
            [2] None
            [3]/1/count i32[]
        """,
    },
}


_WRAPPED = ("nnx-state", "nnx-optimizer", "tunix")
_LIKE = {"maxtext": "linen"} | dict.fromkeys(_WRAPPED, "nnx-pure")
_HEADS = dict.fromkeys(("linen", "maxtext", "nnx-optimizer"), "opt_state")
_HEADS |= {"tunix": "optimizer_state/opt_state"}


def expected_tree(layout, optimizer):
    """The whole tree of the tiny model, from the tables above."""
    trees = TREES[optimizer]
    source = _LIKE.get(layout, layout)
    text = trees.get(layout, trees[source])
    if text == "as nnx-pure":
        text = trees["nnx-pure"]
    head = _HEADS.get(layout, "optimizer/opt_state")
    lines = []
    for line in text.splitlines():
        if line.strip():
            key, what = line.rsplit(" ", 1)
            wrapper = "/value" if layout in _WRAPPED else ""
            lines.append(f"{head}/{key.strip()}".rstrip("/") + f"{wrapper} {what}")
    return table("\n".join([WEIGHTS[layout], *lines]))
