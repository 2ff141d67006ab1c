"""Trees as people save them: which role each leaf has, and that what is converted comes back.

A row is a tree, each leaf with its shape and role: P parameters, O optimizer, S step, V variables,
R rng, X other. The line `states` says where its states stand.
"""

import pytest

from nnxconv.commands.convert import converted
from nnxconv.errors import BadInput, CannotHold
from nnxconv.layouts import Options, choose_part
from nnxconv.layouts.survey_options import SurveyOptions
from nnxconv.state import parameter_trees
from nnxconv.tree import first_source
from tests.layouts.test_any_tree import check_params_only, check_roles, check_way_back
from tests.support import any_trees, states
from tests.support.layouts import source_tree

ROLES = {
    "P": "parameters",
    "O": "optimizer",
    "S": "step",
    "V": "variables",
    "R": "rng",
    "X": "other",
}

ADAM = """
{0}/count i32[] O
{0}/mu/dense/kernel f32[2,3] O
{0}/mu/dense/bias f32[3] O
{0}/nu/dense/kernel f32[2,3] O
{0}/nu/dense/bias f32[3] O
"""
DENSE = """
{0}/dense/kernel f32[2,3] {1}
{0}/dense/bias f32[3] {1}
"""
LINEN = DENSE.format("params", "P") + ADAM.format("opt_state/[0]") + "step i32[] S\n"
WRAPPED = """
params/dense/kernel/value f32[2,3] P
params/norm/scale/value f32[2] P
opt_state/[0]/count i32[] O
opt_state/[0]/mu/dense/kernel/value f32[2,3] O
opt_state/[0]/mu/norm/scale/value f32[2] O
opt_state/[0]/nu/dense/kernel/value f32[2,3] O
opt_state/[0]/nu/norm/scale/value f32[2] O
batch_stats/norm/mean/value f32[2] V
batch_stats/norm/var/value f32[2] V
rng_state/drop/rngs/count/value u32[] R
rng_state/drop/rngs/key/value u32[2] R
"""
PURE = (
    DENSE.format("model", "P") + ADAM.format("optimizer/opt_state/0") + "optimizer/step u32[] S\n"
)

TREES = {
    # a target network saved as a training state is, with no optimizer of its own
    "target below params": (
        DENSE.format("critic/params", "P")
        + ADAM.format("critic/opt_state/[0]")
        + DENSE.format("target_critic/params", "V"),
        ["critic"],
    ),
    # an average with its decay and count
    "average with numbers": (
        LINEN + DENSE.format("ema/params", "V") + "ema/decay f32[] X\nema/count i32[] X",
        [""],
    ),
    # an average for each of several decays
    "averages by decay": (
        LINEN + DENSE.format("emas/0.9", "V") + DENSE.format("emas/0.999", "V"),
        [""],
    ),
    # what `nnx.split` gives, beside an optimizer of optax
    "collections in boxes": (WRAPPED, [""]),
    # parameters of other names, all in boxes
    "boxes of any name": ("params/a/w/value f32[2,3] P\nparams/b/w/value f32[3] P", [""]),
    # what `nnx.split` gives, alone
    "collections in boxes alone": (
        "\n".join(line for line in WRAPPED.splitlines() if "opt_state" not in line),
        [""],
    ),
    # the step beside an optimizer that counts too
    "two steps": (PURE + "step i64[] S", [""]),
    # streams of random numbers that are not the model's
    "streams beside": (
        PURE + "rngs/dropout/count u32[] R\nrngs/dropout/key u32[2] R",
        [""],
    ),
    # a module called `params` beside another
    "module called params": (
        """
        params/params/kernel f32[2,3] P
        params/head/kernel f32[3,4] P
        opt_state/[0]/count i32[] O
        opt_state/[0]/mu/params/kernel f32[2,3] O
        opt_state/[0]/mu/head/kernel f32[3,4] O
        opt_state/[0]/nu/params/kernel f32[2,3] O
        opt_state/[0]/nu/head/kernel f32[3,4] O
        step i32[] S
        """,
        [""],
    ),
    # plain SGD, which counts and keeps nothing
    "two steps of plain SGD": (
        DENSE.format("model", "P") + "optimizer/step u32[] S\nstep i64[] S",
        [""],
    ),
    # models side by side, and one optimizer for both
    "models beside their optimizer": (
        """
        encoder/in/kernel f32[2,3] P
        decoder/out/kernel f32[3,2] P
        opt_state/[0]/count i32[] O
        opt_state/[0]/mu/encoder/in/kernel f32[2,3] O
        opt_state/[0]/mu/decoder/out/kernel f32[3,2] O
        opt_state/[0]/nu/encoder/in/kernel f32[2,3] O
        opt_state/[0]/nu/decoder/out/kernel f32[3,2] O
        target/encoder/in/kernel f32[2,3] V
        target/decoder/out/kernel f32[3,2] V
        step i32[] S
        epoch i32[] X
        """,
        [""],
    ),
    # the same below a key, each in boxes, and one that is not trained
    "models beside their optimizer, in boxes": (
        """
        agent/actor/layer/w/value f32[2,3] P
        agent/critic/layer/w/value f32[3,2] P
        agent/opt/[0]/count i32[] O
        agent/opt/[0]/trace/actor/layer/w/value f32[2,3] O
        agent/opt/[0]/trace/critic/layer/w/value f32[3,2] O
        agent/obs/mean f32[2] X
        """,
        ["agent"],
    ),
    # adapters that are trained, and the weights that are not
    "adapters apart": (
        """
        params/q/kernel f32[4,4] V
        lora/q/lora_a f32[4,2] P
        lora/q/lora_b f32[2,4] P
        opt_state/[0]/count i32[] O
        opt_state/[0]/mu/q/lora_a f32[4,2] O
        opt_state/[0]/mu/q/lora_b f32[2,4] O
        opt_state/[0]/nu/q/lora_a f32[4,2] O
        opt_state/[0]/nu/q/lora_b f32[2,4] O
        step i32[] S
        """,
        [""],
    ),
    # a target network among the parameters, of which the optimizer follows the other one
    "target among the parameters": (
        DENSE.format("params/online", "P")
        + DENSE.format("params/target", "V")
        + ADAM.format("opt_state/[0]"),
        [""],
    ),
    # an optimizer for each of two parts, and a copy of one of them beside
    "target among parts": (
        """
        params/actor/in/kernel f32[2,3] P
        params/critic/in/kernel f32[4,3] P
        params/target_critic/in/kernel f32[4,3] V
        opt_states/actor/[0]/trace/in/kernel f32[2,3] O
        opt_states/critic/[0]/trace/in/kernel f32[4,3] O
        step i32[] S
        """,
        [""],
    ),
    # the average of `optax.ema`, beside a state and below a key of its own
    "average of optax": (
        LINEN + DENSE.format("ema/ema", "V") + "ema/count i32[] X",
        [""],
    ),
    "average of optax beside a state": (
        DENSE.format("state/params", "P")
        + ADAM.format("state/opt_state/[0]")
        + DENSE.format("ema_state/ema", "V")
        + "ema_state/count i32[] X",
        ["state"],
    ),
    # what Haiku's `init` returns, in turn, under what parameters are called
    "Haiku's pair beside its optimizer": (
        """
        model/[0]/mlp~norm/scale f32[3] P
        model/[0]/mlp/w f32[2,3] P
        model/[1]/mlp/hidden f32[3] V
        model/[1]/mlp/counter i32[] V
        opt_state/[0]/count i32[] O
        opt_state/[0]/mu/mlp~norm/scale f32[3] O
        opt_state/[0]/mu/mlp/w f32[2,3] O
        opt_state/[0]/nu/mlp~norm/scale f32[3] O
        opt_state/[0]/nu/mlp/w f32[2,3] O
        step i32[] S
        """,
        [""],
    ),
    # keys by purpose, which are no module's streams
    "keys by purpose": (LINEN + "rngs/dropout u32[2] R\nrngs/params u32[2] R", [""]),
    # Adam written by hand, beside parameters of whatever name
    "moments beside parameters": (
        DENSE.format("theta", "P") + DENSE.format("m", "O") + DENSE.format("v", "O") + "t i64[] X",
        ["theta"],
    ),
    "momentum beside parameters": (
        DENSE.format("params", "P") + DENSE.format("velocity", "O") + "iter i64[] X",
        [""],
    ),
    # `optax.multi_transform` by labels that are numbers
    "numbers as labels": (
        """
        params/a/kernel f32[2,3] P
        params/b/kernel f32[3,4] P
        opt_state/inner_states/0/inner_state/[0]/count i32[] O
        opt_state/inner_states/0/inner_state/[0]/mu/a/kernel f32[2,3] O
        opt_state/inner_states/0/inner_state/[0]/nu/a/kernel f32[2,3] O
        opt_state/inner_states/1/inner_state/[0]/trace/b/kernel f32[3,4] O
        step i32[] S
        """,
        [""],
    ),
    # a list of models, and one NNX optimizer, which has digits for it
    "models in turn beside digits": (
        """
        models/[0]/blocks/0/kernel f32[2,3] P
        models/[0]/bn/mean f32[3] V
        models/[1]/blocks/0/kernel f32[4,3] P
        models/[1]/bn/mean f32[3] V
        optimizer/opt_state/0/count i32[] O
        optimizer/opt_state/0/mu/0/blocks/0/kernel f32[2,3] O
        optimizer/opt_state/0/mu/1/blocks/0/kernel f32[4,3] O
        optimizer/opt_state/0/nu/0/blocks/0/kernel f32[2,3] O
        optimizer/opt_state/0/nu/1/blocks/0/kernel f32[4,3] O
        optimizer/step u32[] S
        """,
        [""],
    ),
    # lists of two models and of their optimizers: the second is no state of the first
    "models in turn": (
        """
        params/[0]/in/kernel f32[2,3] P
        params/[1]/in/kernel f32[4,3] P
        opt_state/[0]/count i32[] O
        opt_state/[0]/mu/[0]/in/kernel f32[2,3] O
        opt_state/[0]/mu/[1]/in/kernel f32[4,3] O
        opt_state/[0]/nu/[0]/in/kernel f32[2,3] O
        opt_state/[0]/nu/[1]/in/kernel f32[4,3] O
        step i32[] S
        """,
        [""],
    ),
    # all of an NNX model, in boxes or not, beside an optimizer of optax
    "model of boxes beside optax": (
        """
        model/dense/kernel/value f32[2,3] P
        model/norm/mean/value f32[3] V
        model/drop/rngs/count/value u32[] R
        model/drop/rngs/key/value u32[2] R
        opt_state/[0]/count i32[] O
        opt_state/[0]/mu/dense/kernel/value f32[2,3] O
        opt_state/[0]/nu/dense/kernel/value f32[2,3] O
        step i32[] S
        """,
        [""],
    ),
    "pure model beside optax": (
        """
        net/dense/kernel f32[2,3] P
        net/norm/mean f32[3] V
        net/drop/rngs/count u32[] R
        net/drop/rngs/key u32[2] R
        tx/[0]/count i32[] O
        tx/[0]/mu/dense/kernel f32[2,3] O
        tx/[0]/nu/dense/kernel f32[2,3] O
        epoch i32[] X
        """,
        [""],
    ),
    # a learned prior, whose mean and variance are trained, as the moments tell
    "learned prior": (
        """
        params/enc/kernel f32[2,3] P
        params/prior/mean f32[3] P
        params/prior/var f32[3] P
        opt_state/[0]/count i32[] O
        opt_state/[0]/mu/enc/kernel f32[2,3] O
        opt_state/[0]/mu/prior/mean f32[3] O
        opt_state/[0]/mu/prior/var f32[3] O
        batch_stats/norm/mean f32[3] V
        """,
        [""],
    ),
    "learned prior in boxes": (
        """
        model/prior/mean/value f32[3] P
        model/enc/kernel/value f32[2,3] P
        model/norm/mean/value f32[3] V
        optimizer/opt_state/0/count/value i32[] O
        optimizer/opt_state/0/mu/enc/kernel/value f32[2,3] O
        optimizer/opt_state/0/mu/prior/mean/value f32[3] O
        optimizer/step/value u32[] S
        """,
        [""],
    ),
    # learning rates of the parameters' shapes, whose name comes first in the alphabet
    "rates like the parameters": (
        DENSE.format("inner_lr", "V")
        + DENSE.format("meta_params", "P")
        + ADAM.format("opt_state/[0]"),
        [""],
    ),
    # the average of an encoder of queries (MoCo)
    "encoder of keys": (
        DENSE.format("params_k", "V")
        + DENSE.format("params_q", "P")
        + ADAM.format("opt_state/[0]"),
        [""],
    ),
    # two optimizers of NNX that follow one model
    "two optimizers that count": (
        DENSE.format("model", "P")
        + ADAM.format("opt_slow/opt_state/0")
        + "opt_slow/step u32[] S\n"
        + ADAM.format("opt_fast/opt_state/0")
        + "opt_fast/step u32[] S\n",
        [""],
    ),
    # parameters of another name without an optimizer, and the step of their training
    "weights and a step": (DENSE.format("run/weights", "P") + "run/step i32[] S", ["run"]),
    # models of other names beside a step that belongs to none of them
    "models beside a step": (
        DENSE.format("actor", "P") + "critic/out/kernel f32[3,1] P\nstep i32[] X",
        ["actor", "critic"],
    ),
    # an optimizer of `flax.optim`, of before 2022
    "former optimizer": (
        """
        optimizer/target/dense/kernel f32[2,3] P
        optimizer/target/dense/bias f32[3] P
        optimizer/state/step i32[] S
        optimizer/state/param_states/dense/kernel/grad_ema f32[2,3] O
        optimizer/state/param_states/dense/kernel/grad_sq_ema f32[2,3] O
        optimizer/state/param_states/dense/bias/grad_ema f32[3] O
        optimizer/state/param_states/dense/bias/grad_sq_ema f32[3] O
        model_state/batch_stats/dense/mean f32[3] V
        """,
        [""],
    ),
    "former optimizers below keys": (
        """
        gen/target/params/out/kernel f32[2,3] P
        gen/state/step i32[] S
        gen/state/param_states/params/out/kernel/momentum f32[2,3] O
        disc/optimizer/target/out/kernel f32[4,1] P
        disc/optimizer/state/step i32[] S
        disc/optimizer/state/param_states/out/kernel/v_row f32[4] O
        disc/optimizer/state/param_states/out/kernel/v_col f32[1] O
        disc/ema/out/kernel f32[4,1] V
        """,
        ["gen", "disc"],
    ),
    # a former optimizer at the root, beside what T5X has there
    "former optimizer beside others": (
        """
        target/out/kernel f32[2,3] P
        state/step i32[] S
        state/param_states/out/kernel/m f32[1] O
        state/param_states/out/kernel/v_row f32[2] O
        version i64[] X
        """,
        [""],
    ),
    # what Haiku's averages keep, of modules that have no weights of their own
    "averages of Haiku": (
        """
        params/vae%~%in/w f32[2,3] P
        params/vae%~%out/w f32[3,2] P
        opt_state/[0]/count i32[] O
        opt_state/[0]/trace/vae%~%in/w f32[2,3] O
        opt_state/[0]/trace/vae%~%out/w f32[3,2] O
        state/vae%~%codes/embeddings f32[4,8] V
        state/vae%~%codes%~%ema/average f32[4] V
        state/vae%~%codes%~%ema/counter i32[] V
        state/norm%~%mean_ema/average f32[1,3] V
        state/norm%~%mean_ema/counter i32[] V
        state/norm%~%mean_ema/hidden f32[1,3] V
        """,
        [""],
    ),
    # a copy of one part, whose modules are called by whole paths
    "slow part of flat names": (
        """
        params/critic%out%kernel f32[2,3] P
        params/actor%out%kernel f32[3,2] P
        opt/mu/critic%out%kernel f32[2,3] O
        opt/mu/actor%out%kernel f32[3,2] O
        opt/nu/critic%out%kernel f32[2,3] O
        opt/nu/actor%out%kernel f32[3,2] O
        opt/count i32[] O
        slow/critic%out%kernel f32[2,3] V
        """,
        [""],
    ),
    # a ResNet with PyTorch's names: a block is no element of an optimizer's chain
    "blocks of a ResNet": (
        """
        conv1/weight f32[8,3,7,7] P
        layer3/0/conv1/weight f32[8,4,3,3] P
        layer3/0/conv2/weight f32[8,8,3,3] P
        layer3/0/bn1/weight f32[8] P
        layer3/0/bn1/bias f32[8] P
        layer3/0/bn1/running_mean f32[8] V
        layer3/0/bn1/running_var f32[8] V
        layer3/0/bn1/num_batches_tracked i64[] V
        layer3/0/downsample/0/weight f32[8,4,1,1] P
        layer3/0/downsample/1/weight f32[8] P
        layer3/0/downsample/1/bias f32[8] P
        layer3/1/conv1/weight f32[8,8,3,3] P
        layer3/1/conv2/weight f32[8,8,3,3] P
        layer3/1/bn1/weight f32[8] P
        layer3/1/bn1/bias f32[8] P
        layer3/1/bn1/running_mean f32[8] V
        layer3/1/bn1/running_var f32[8] V
        """,
        [""],
    ),
    "dotted names of PyTorch": (
        """
        layer3.0.conv1.weight f32[8,4,3,3] P
        layer3.0.bn1.weight f32[8] P
        layer3.0.bn1.running_mean f32[8] V
        layer3.0.bn1.running_var f32[8] V
        """,
        [""],
    ),
    # what `nnx.split` gives in turn: parameters, statistics, streams of modules without either
    "split in turn": (
        """
        [0]/dense/kernel f32[2,3] P
        [0]/norm/scale f32[3] P
        [1]/norm/mean f32[3] V
        [2]/drop/rngs/count u32[] R
        [2]/drop/rngs/key u32[2] R
        """,
        [""],
    ),
    # a level for each of two models, and an optimizer for each (Anakin)
    "levels of two models": (
        DENSE.format("params/actor_params/params", "P")
        + "params/critic_params/params/out/kernel f32[3,1] P\n"
        + ADAM.format("opt_states/actor_opt_state/[0]").replace("u/dense", "u/params/dense")
        + "opt_states/critic_opt_state/[0]/trace/params/out/kernel f32[3,1] O\n"
        + "key u32[2] R\n",
        ["params/actor_params/params", "params/critic_params/params"],
    ),
    # one optimizer for two models, which it calls otherwise
    "one optimizer for two names": (
        DENSE.format("actor_params", "P")
        + "critic_params/out/kernel f32[3,1] P\n"
        + ADAM.format("opt_state/[0]").replace("u/dense", "u/actor/dense")
        + "opt_state/[0]/mu/critic/out/kernel f32[3,1] O\n"
        + "opt_state/[0]/nu/critic/out/kernel f32[3,1] O\n"
        + "step i32[] S",
        [""],
    ),
    "one optimizer for a pair": (
        DENSE.format("q_params", "P")
        + "policy_params/out/kernel f32[3,1] P\n"
        + ADAM.format("opt_state/[0]").replace("u/dense", "u/[0]/dense")
        + "opt_state/[0]/mu/[1]/out/kernel f32[3,1] O\n"
        + "opt_state/[0]/nu/[1]/out/kernel f32[3,1] O\n",
        [""],
    ),
    # what names nothing: of numbers, one is the step
    "a step in a tuple": (
        DENSE.format("[0]", "P") + ADAM.format("[1]/[0]") + "[2] i32[] S",
        [""],
    ),
    "numbers in a tuple": (
        DENSE.format("[0]", "P") + ADAM.format("[1]/[0]") + "[2] i32[] X\n[3] i64[] X",
        [""],
    ),
    # a module called `params` beside another, and no moments that tell
    "module called params alone": (
        DENSE.format("params/params", "P") + "params/head/kernel f32[3,4] P",
        [""],
    ),
    "weights of two kinds alone": (
        DENSE.format("params/params", "P") + "params/slow/dense/kernel f32[2,3] V",
        [""],
    ),
    # the state of K-FAC, under whatever name
    "factors": (
        DENSE.format("params", "P")
        + DENSE.format("kfac/velocities", "O")
        + """
        kfac/estimator_state/blocks/dense_0/factor f32[2,2] O
        kfac/damping f32[] O
        kfac/step_counter i32[] O
        """,
        [""],
    ),
    # a vector for each axis of each parameter (SM3)
    "a vector for each axis": (
        """
        params/dense/kernel f32[2,3] P
        params/dense/bias f32[3] P
        opt_state/[0]/mu/dense/kernel/[0] f32[2] O
        opt_state/[0]/mu/dense/kernel/[1] f32[3] O
        opt_state/[0]/mu/dense/bias/[0] f32[3] O
        opt_state/[0]/nu/dense/kernel f32[2,3] O
        opt_state/[0]/nu/dense/bias f32[3] O
        step i32[] S
        """,
        [""],
    ),
    # Levanter's name of the step
    "a step with an underscore": (
        DENSE.format("model", "P") + ADAM.format("opt_state/[0]") + "_step i32[] S",
        [""],
    ),
    # parameters by their names alone, each of a model by itself
    "parameters of a name of their own": (DENSE.format("vae_params", "P"), ["vae_params"]),
    # a pipeline: models, and the settings of its noise
    "models beside settings": (
        DENSE.format("unet", "P")
        + DENSE.format("vae/encoder", "P")
        + "scheduler/common/betas f32[9] X\nscheduler/common/alphas f32[9] X",
        ["unet", "vae"],
    ),
    # a position, and the gradient there, which is no model
    "a gradient beside": (
        DENSE.format("position", "P") + DENSE.format("logdensity_grad", "V") + "logdensity f32[] X",
        ["position"],
    ),
    # models and a copy of one of them, by its name; and a module that is called as copies are
    "a target beside models": (
        DENSE.format("critic", "P")
        + DENSE.format("target_critic", "V")
        + "actor/out/kernel f32[3,4] P",
        ["critic", "actor"],
    ),
    "online and target": (DENSE.format("online", "P") + DENSE.format("target", "V"), ["online"]),
    "embedders": (
        """
        encoder/kernel f32[2,3] P
        source_embed/embedding f32[9,2] P
        target_embed/embedding f32[9,2] P
        """,
        [""],
    ),
    # whole paths as names: what is an optimizer's is no parameter
    "flat names of a whole state": (
        """
        params.dense.kernel f32[2,3] X
        params.dense.bias f32[3] X
        opt_state.0.mu.dense.kernel f32[2,3] X
        opt_state.0.mu.dense.bias f32[3] X
        """,
        [],
    ),
    # PyTorch's: its optimizer numbers the parameters, and follows none by name
    "state dicts": (
        """
        model_state_dict/fc1.weight f32[4,3] P
        model_state_dict/fc1.bias f32[4] P
        model_state_dict/bn.running_mean f32[4] V
        optimizer_state_dict/state/0/exp_avg f32[4,3] O
        optimizer_state_dict/state/0/step f32[] O
        optimizer_state_dict/param_groups/[0]/lr f32[] O
        epoch i64[] X
        """,
        ["model_state_dict"],
    ),
    # what Keras 3 makes of a model, and what older files of its have
    "variables of Keras": (
        """
        trainable_variables/dense/kernel f32[2,3] P
        trainable_variables/norm/gamma f32[3] P
        non_trainable_variables/norm/moving_mean f32[3] V
        optimizer_variables/adam/iteration i32[] O
        optimizer_variables/adam/dense_kernel_momentum f32[2,3] O
        metrics_variables/loss/total f32[] X
        """,
        ["trainable_variables"],
    ),
    "numbered variables of Keras": (
        """
        layers/dense/vars/0 f32[2,3] P
        layers/dense/vars/1 f32[3] P
        optimizer/vars/0 i64[] O
        optimizer/vars/1 f32[2,3] O
        """,
        ["layers"],
    ),
    # moments beside the parameters, by whatever name
    "moments by other names": (
        DENSE.format("params", "P")
        + DENSE.format("adam_m", "O")
        + DENSE.format("second_moment", "O")
        + DENSE.format("opt_v", "O"),
        [""],
    ),
    # a level within levels, in the moments too
    "a level within levels": (
        DENSE.format("params/params/params", "P")
        + ADAM.format("opt_state/[0]").replace("u/dense", "u/params/params/dense")
        + "step i32[] S",
        [""],
    ),
    "split in two beside an optimizer": (
        DENSE.format("params", "P")
        + """
        others/dense/mean f32[3] V
        others/drop/rngs/count u32[] R
        others/drop/rngs/key u32[2] R
        """
        + ADAM.format("opt_state/[0]"),
        [""],
    ),
}


def unmarked(text):
    """The tree of such lines, without the roles."""
    return "\n".join(
        " ".join(line.split()[:2]) for line in text.strip().splitlines() if line.strip()
    )


def made_of(name):
    return made(*TREES[name])


def _names(key):
    return [part for part in key if isinstance(part, str)]


def made(text, ats):
    """The tree of such lines, with the role of each leaf, and where its states stand.

    `%` is a slash within a name.
    """
    lines = [line.split() for line in text.strip().splitlines() if line.strip()]
    marks = [mark for _, _, mark in lines]
    tree = source_tree(unmarked(text))
    keys = {k: tuple(str(p).replace("%", "/") if p in _names(k) else p for p in k) for k in tree}
    found = any_trees.Made({keys[k]: any_trees.renamed(leaf, keys[k]) for k, leaf in tree.items()})
    found.roles = dict(zip(found.tree, map(ROLES.__getitem__, marks), strict=True))
    found.states = {tuple(at.split("/")) if at else (): None for at in ats}
    return found


@pytest.mark.parametrize("name", TREES)
def test_every_leaf_has_its_role(name):
    check_roles(made_of(name))


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("target", ["linen", "nnx", "nnx-state", "nnx-pure"])
def test_what_is_converted_comes_back(name, target):
    made = made_of(name)
    check_way_back(made, check_roles(made), target)


@pytest.mark.parametrize("name", TREES)
def test_parameters_alone_are_exported(name):
    made = made_of(name)
    check_params_only(made, check_roles(made))


@pytest.mark.parametrize("target", ["linen", "nnx", "nnx-pure"])
@pytest.mark.parametrize(
    "name",
    [
        "two steps",
        "target among the parameters",
        "target among parts",
        "average of optax",
        "Haiku's pair beside its optimizer",
        "model of boxes beside optax",
        "pure model beside optax",
        "learned prior",
        "learned prior in boxes",
        "two optimizers that count",
        "former optimizer",
        "former optimizers below keys",
        "keys by purpose",
        "numbers as labels",
        "models in turn beside digits",
        "levels of two models",
        "one optimizer for two names",
        "one optimizer for a pair",
        "a step in a tuple",
        "module called params alone",
        "factors",
        "a vector for each axis",
        "a step with an underscore",
    ],
)
def test_what_has_a_meaning_is_not_refused(name, target):
    made = made_of(name)
    survey = choose_part(made.tree, SurveyOptions()).survey
    assert converted(survey, Options(to=target), None, None).states


def test_a_step_beside_a_step_stays_and_the_one_of_the_optimizer_goes_beside_it():
    survey = choose_part(made_of("two steps").tree, SurveyOptions()).survey
    tree = converted(survey, Options(to="linen"), None, None).tree
    assert tree[("step",)].name == "step"
    assert first_source(tree[("optimizer_step",)]).name == "optimizer.step"


@pytest.mark.parametrize("target", ["nnx-pure", "nnx-state"])
def test_keys_that_are_no_modules_stay_beside_the_model(target):
    survey = choose_part(made_of("keys by purpose").tree, SurveyOptions()).survey
    tree = converted(survey, Options(to=target), None, None).tree
    assert {key for key in tree if "rngs" in key} == {("rngs", "dropout"), ("rngs", "params")}


def test_moments_of_models_in_turn_follow_them_and_keep_their_digits():
    survey = choose_part(made_of("models in turn beside digits").tree, SurveyOptions()).survey
    state = survey.states[0].understood.state
    assert set(parameter_trees(state.opt_state, state.params)) == {(0, "mu"), (0, "nu")}
    tree = converted(survey, Options(to="nnx-state"), None, None).tree
    assert ("optimizer", "opt_state", "0", "mu", "1", "blocks", "0", "kernel", "value") in tree


def test_a_copy_among_the_parameters_is_named_where_it_is_in_the_way():
    survey = choose_part(made_of("target among parts").tree, SurveyOptions()).survey
    with pytest.raises(CannotHold) as refused:
        converted(survey, Options(to="maxtext"), None, None)
    assert refused.value.hint == "`--drop 'params.target_critic'` leaves out what is in the way"


def test_an_array_alone_is_no_model():
    tree = source_tree(
        "params f32[3]\nopt_state/[0]/count i32[]\nopt_state/[0]/mu f32[3]\nstep i32[]"
    )
    found = choose_part(tree, SurveyOptions()).survey
    assert found.states == ()
    assert {str(key[0]): role for key, role in found.roles.items()} == {
        "params": "other",
        "opt_state": "optimizer",
        "step": "other",
    }


def test_an_optimizer_of_plain_sgd_may_count_in_a_number():
    tree = source_tree("model/dense/kernel/value f32[2,3]")
    tree[("optimizer", "step", "value")] = states.array(("x",), (), "uint32", kind="scalar")
    found = choose_part(tree, SurveyOptions()).survey
    assert list(found.roles.values()) == ["parameters", "step"]


def test_all_that_is_in_the_way_is_left_out_by_one_command():
    tree = source_tree(unmarked(LINEN) + "\nepoch i32[]\nloss f32[]")
    with pytest.raises(CannotHold) as refused:
        converted(choose_part(tree, SurveyOptions()).survey, Options(to="maxtext"), None, None)
    assert refused.value.hint == "`--drop 'epoch' --drop 'loss'` leaves out what is in the way"


BELOW = (
    DENSE.format("run/params", "P")
    + ADAM.format("run/opt_state/[0]")
    + DENSE.format("run/ema_params", "V")
    + "run/loss f32[] X\nepoch i32[] X"
)


def test_one_state_is_taken_alone_by_options_that_suffice():
    tree = source_tree(unmarked(BELOW))
    with pytest.raises(CannotHold) as refused:
        converted(choose_part(tree, SurveyOptions()).survey, Options(to="maxtext"), None, None)
    hint = "`--at run --drop 'loss' --drop 'ema_params'` takes it alone"
    assert refused.value.hint == hint
    alone = choose_part(tree, SurveyOptions(), at="run", drop=["loss", "ema_params"]).survey
    assert converted(alone, Options(to="maxtext"), None, None).states


@pytest.mark.parametrize("target", ["nnx", "maxtext"])
def test_what_stands_at_the_paths_of_parameters_is_said_to_be_kept_by_no_layout(target):
    tree = source_tree(unmarked(LINEN) + "\nmasks/dense/kernel i32[2,3]")
    with pytest.raises(CannotHold) as refused:
        converted(choose_part(tree, SurveyOptions()).survey, Options(to=target), None, None)
    assert refused.value.hint == "`--without aux` leaves them out"


@pytest.mark.parametrize(
    ("name", "without"),
    [("collections in boxes", ("aux.rng_state",)), ("boxes of any name", ())],
)
def test_a_box_is_opened_once_and_for_all_collections(name, without):
    chosen = check_roles(made_of(name))
    whole = converted(chosen.survey, Options(to="nnx", without=without), None, None)
    assert all(key.count("value") <= 1 for key in whole.tree)


def test_averages_of_batch_statistics_alone_are_left_out_where_they_are_in_the_way():
    tree = source_tree(
        unmarked(LINEN)
        + "\nparams/norm/scale f32[2]"
        + "\nbatch_stats/norm/mean f32[2]\nema_batch_stats/norm/mean f32[2]"
    )
    with pytest.raises(CannotHold) as refused:
        converted(choose_part(tree, SurveyOptions()).survey, Options(to="nnx"), None, None)
    assert "`--without aux.ema_batch_stats` leaves them out" in refused.value.hint


def test_a_copy_where_one_of_several_states_is_needed_is_taken_alone():
    text = DENSE.format("{0}/params", "P") + ADAM.format("{0}/opt_state/[0]")
    tree = text.format("actor") + text.format("critic") + DENSE.format("target/params", "V")
    survey = choose_part(source_tree(unmarked(tree)), SurveyOptions()).survey
    with pytest.raises(BadInput) as refused:
        converted(survey, Options(to="nnx", params_only=True, params_from="target"), None, None)
    assert refused.value.hint == "`--at target` takes that copy alone, without `--params_from`"
