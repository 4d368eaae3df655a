"""Compressed decoder models: a stock architecture whose linear layers changed their form.

This file is complete in itself (torch and transformers only). It is saved beside the weights, so
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs nothing else. A class
`CompressedXForCausalLM` is made of the stock class `XForCausalLM` when it is asked for.

The configuration is the stock one, and

- `layout`: what the parts of a decoder layer are called, and which projections are fused;
- `compressed_modules`: path -> new form of a projection. {"rank": r}: two factors (arXiv
  2404.09695), with "form": "pivoted" r independent rows and the others as combinations of them
  (arXiv 2501.19090); "out_features", "in_features": another size; "bias": true where the stock
  layer has none; "scatter": n computes n rows of the output, the others are zero; "gather": n
  reads n features of the input;
- `replaced_layers`: position -> {"kind": "ffn" | "swiglu" | "linear", "residual": bool}, a module
  in place of a decoder layer (arXiv 2403.19135); `original_layers`: the number that each layer had;
- `shortcuts`: true: a linear map of the residual before each addition (arXiv 2401.15024);
- `branches`: position -> rank of a low-rank map parallel to the MLP.

The two factors of `self_attn.q_proj` are `self_attn.right.q_proj` and `self_attn.left.q_proj`:
tools that look for linear layers by their usual names find both.
"""

import inspect
import sys

import torch
import transformers
from torch import nn
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

OLDEST = (4, 56)
if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(
        f"this compressed model needs transformers {'.'.join(map(str, OLDEST))} or newer, "
        f"got {transformers.__version__}"
    )
PARTS = ("right", "left", "inner", "order", "kept", "read")
"""Where the parts of a changed projection are, beside it."""
MANY = 128
"""Tokens from which weights are put in order in place of features, on a CPU."""


def bare(linear):
    """A linear layer that nothing hangs on: no adapter, hook, shard or integer."""
    plain = type(linear) is nn.Linear and type(linear.weight) in (nn.Parameter, torch.Tensor)
    hooks = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    return plain and not hooks


class Projection(nn.Module):
    """A linear map (..., in_features) -> (..., out_features) in another form than one matrix.

    It may read `gather` features of its input and compute `scatter` features of its output; `read`
    and `kept` are their indices.
    """

    PARTS = ("kept", "read")

    def __init__(self, in_features, out_features, scatter=None, gather=None, device=None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        index = {"kept": scatter, "read": gather}
        for name, size in index.items():
            found = None if size is None else torch.arange(size, device=device)
            self.register_buffer(name, found)

    def forward(self, x):
        many = x.device.type == "cpu" and x.numel() >= MANY * self.in_features
        if many and self.reorders and all(map(bare, self.parts())):
            return self.product_of_many(x)
        if self.read is not None:
            x = x.index_select(-1, self.read)
        y = self.product(x)
        if self.kept is None:
            return y
        return y.new_zeros(*y.shape[:-1], self.out_features).index_copy(-1, self.kept, y)

    @property
    def reorders(self):
        """Some features are read, computed or put in order by an index."""
        return self.read is not None or self.kept is not None

    def product_of_many(self, x):
        """The same for many tokens, where ordering weights is cheaper than ordering features."""
        chain = self.chain()
        if self.read is not None:
            weight, bias = chain[0]
            wide = weight.new_zeros(len(weight), self.in_features)
            chain[0] = wide.index_copy(1, self.read, weight), bias
        if self.kept is not None:
            weight, bias = chain[-1]
            tall = weight.new_zeros(self.out_features, weight.shape[1])
            if bias is not None:
                bias = bias.new_zeros(self.out_features).index_copy(0, self.kept, bias)
            chain[-1] = tall.index_copy(0, self.kept, weight), bias
        for weight, bias in chain:
            x = nn.functional.linear(x, weight, bias)
        return x

    @property
    def weight(self):
        """The whole matrix, computed anew: for inspection, and for tools that ask for a weight."""
        return self.whole()

    def whole(self, dtype=None):
        """The whole matrix (out_features, in_features), computed in a dtype, by default its own."""
        narrow = self.matrix(dtype or next(self.parts()).weight.dtype)
        if self.read is not None:
            wide = narrow.new_zeros(len(narrow), self.in_features)
            narrow = wide.index_copy(1, self.read, narrow)
        if self.kept is not None:
            tall = narrow.new_zeros(self.out_features, self.in_features)
            narrow = tall.index_copy(0, self.kept, narrow)
        return narrow

    @property
    def bias(self):
        """Of all outputs, or None."""
        bias = self.offset()
        if bias is None or self.kept is None:
            return bias
        return bias.new_zeros(self.out_features).index_copy(0, self.kept, bias)

    def parts(self):
        """Its linear layers."""
        found = (getattr(self, name, None) for name in ("right", "left", "inner"))
        return (part for part in found if part is not None)

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}"


class NarrowLinear(Projection):
    """One matrix between the features that are read and those that are computed."""

    PARTS = ("inner", *Projection.PARTS)

    def __init__(self, in_features, out_features, bias, scatter=None, gather=None, **factory):
        super().__init__(in_features, out_features, scatter, gather, factory.get("device"))
        sizes = (gather or in_features, scatter or out_features)
        self.inner = nn.Linear(*sizes, bias=bias, **factory)

    def product(self, x):
        return self.inner(x)

    def chain(self):
        return [(self.inner.weight, self.inner.bias)]

    def matrix(self, dtype):
        return self.inner.weight.to(dtype)

    def offset(self):
        return self.inner.bias


class LowRankLinear(Projection):
    """y = L (R x) + b in place of y = W x + b, with R of shape (rank, in) and L (out, rank)."""

    PARTS = ("right", "left", *Projection.PARTS)

    def __init__(
        self, in_features, out_features, rank, bias, *, scatter=None, gather=None, **factory
    ):
        super().__init__(in_features, out_features, scatter, gather, factory.get("device"))
        self.rank = rank
        self.right = nn.Linear(gather or in_features, rank, bias=False, **factory)
        self.left = nn.Linear(rank, scatter or out_features, bias=bias, **factory)

    def product(self, x):
        return self.left(self.right(x))

    def chain(self):
        return [(part.weight, part.bias) for part in (self.right, self.left)]

    def matrix(self, dtype):
        return self.left.weight.to(dtype) @ self.right.weight.to(dtype)

    def offset(self):
        return self.left.bias

    def extra_repr(self):
        return f"{super().extra_repr()}, rank={self.rank}"


class PivotedLinear(LowRankLinear):
    """`rank` rows of W are kept in `right`; `left` combines their outputs into the other rows.

    Output `order[i]` is the i-th of both together, so that rank * (in + out - rank) weights
    suffice. With a bias, that of `left` comes on top of what it makes of the biased rows.
    """

    PARTS = (*LowRankLinear.PARTS, "order")

    def __init__(
        self, in_features, out_features, rank, bias, *, scatter=None, gather=None, **factory
    ):
        super().__init__(
            in_features, out_features, rank, bias, scatter=scatter, gather=gather, **factory
        )
        outputs = scatter or out_features
        self.right = nn.Linear(gather or in_features, rank, bias=bias, **factory)
        self.left = nn.Linear(rank, outputs - rank, bias=bias, **factory)
        self.register_buffer("order", torch.arange(outputs, device=factory.get("device")))

    @property
    def reorders(self):
        return True

    def product(self, x):
        rows = self.right(x)
        both = torch.cat([rows, self.left(rows)], dim=-1)
        return both.index_select(-1, self.order.argsort())

    def chain(self):
        places, weight, bias = self.order.argsort(), self.left.weight, self.left.bias
        same = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        if bias is not None:
            bias = torch.cat([bias.new_zeros(len(same)), bias])[places]
        return [(self.right.weight, self.right.bias), (torch.cat([same, weight])[places], bias)]

    def matrix(self, dtype):
        rows = self.right.weight.to(dtype)
        return torch.cat([rows, self.left.weight.to(dtype) @ rows])[self.order.argsort()]

    def offset(self):
        if self.left.bias is None:
            return None
        rest = self.left.weight @ self.right.bias + self.left.bias
        return torch.cat([self.right.bias, rest])[self.order.argsort()]


FORMS = {"pair": LowRankLinear, "pivoted": PivotedLinear}


def reshape_linear(
    linear,
    *,
    rank=None,
    form="pair",
    out_features=None,
    in_features=None,
    bias=None,
    scatter=None,
    gather=None,
):
    """An uninitialised layer of the new form with the dtype and device of `linear`.

    It has a bias where `linear` has one, or where `bias` says so.
    """
    has_bias = linear.bias is not None if bias is None else bias
    some = next(linear.parts()) if isinstance(linear, Projection) else linear
    factory = {"dtype": some.weight.dtype, "device": some.weight.device}
    sizes = (in_features or linear.in_features, out_features or linear.out_features)
    if rank is not None:
        return FORMS[form](*sizes, rank, has_bias, scatter=scatter, gather=gather, **factory)
    if scatter is not None or gather is not None:
        return NarrowLinear(*sizes, has_bias, scatter, gather, **factory)
    return nn.Linear(*sizes, bias=has_bias, **factory)


class Parts(nn.Module):
    """Parts of the changed projections of one module, under the projections' names."""


def _placed(kind):
    """A form whose parts belong to the module that holds the projection."""

    def init(self, projection, owner, name):
        nn.Module.__init__(self)
        self.at, self.homes = name, {part: owner._modules[part] for part in present(projection)}
        self.in_features, self.out_features = projection.in_features, projection.out_features
        if hasattr(projection, "rank"):
            self.rank = projection.rank

    def find(part):
        def get(self):
            home = self.homes.get(part)
            return None if home is None else getattr(home, self.at)

        return property(get)

    body = {part: find(part) for part in kind.PARTS}
    return type(
        f"Placed{kind.__name__}", (kind,), {"__init__": init, "__module__": __name__} | body
    )


def present(projection):
    """Names of the parts that a projection has."""
    return [part for part in projection.PARTS if getattr(projection, part) is not None]


PLACED = {kind: _placed(kind) for kind in (NarrowLinear, LowRankLinear, PivotedLinear)}
globals().update({kind.__name__: kind for kind in PLACED.values()})


class Variant:
    """Mixin of a module that differs from its stock class; `restyle` says how.

    Each way to differ is a class of its own, as tools treat the modules of a class alike. A changed
    projection is found under its usual path, but is no child: its parts are.
    """

    def __reduce__(self):
        traits = self._traits
        key = (tuple(traits["changed"]), traits["layout"] is not None, traits["branch"])
        return _revive, (self._stock, *key), self.__dict__


def _revive(stock, *key):
    kind = variant(stock, *key)
    return kind.__new__(kind)


def variant(stock, changed, shortcuts, branch):
    """The class of the modules of class `stock` in which the projections `changed` changed."""
    key = (stock, tuple(sorted(changed)), shortcuts, branch)
    if key not in _VARIANTS:
        body = {"_stock": stock, "__module__": __name__, "__doc__": stock.__doc__}
        for name in changed:
            body[name] = property(lambda self, at=name: self._traits["changed"][at])
        bases = [Shortcut] * shortcuts + [Branch] * branch + [Variant, stock]
        marks = ["Shortcuts"] * shortcuts + ["Branch"] * branch
        name = "_".join([f"{stock.__name__}Changed", *marks, *sorted(changed)])
        _VARIANTS[key] = type(name, tuple(bases), body)
    return _VARIANTS[key]


_VARIANTS: dict = {}


def restyle(module, **traits):
    """Give a module the class that its traits ask for: changed projections, shortcuts, a branch."""
    stock = module._stock if isinstance(module, Variant) else type(module)
    nothing = {"changed": {}, "layout": None, "branch": False}
    traits = nothing | module.__dict__.get("_traits", {}) | traits
    if traits == nothing:
        module.__dict__.pop("_traits", None)
        module.__class__ = stock
        return
    module.__dict__["_traits"] = traits
    key = (tuple(traits["changed"]), traits["layout"] is not None, traits["branch"])
    module.__class__ = variant(stock, *key)


def changed_in(module):
    """Changed projections of a module by name."""
    return dict(module._traits["changed"]) if isinstance(module, Variant) else {}


def place(root, path, module):
    """Put a linear layer, or a projection in another form, at a path below `root`."""
    owner_path, _, name = path.rpartition(".")
    owner = root.get_submodule(owner_path)
    changed = changed_in(owner)
    if name in changed:
        _remove_parts(owner, name, changed.pop(name))
        restyle(owner, changed=changed)
    if not isinstance(module, Projection):
        owner._modules[name] = module
        return
    owner._modules.pop(name, None)
    for part in present(module):
        if part not in owner._modules:
            owner.add_module(part, Parts())
        value = getattr(module, part)
        if isinstance(value, nn.Module):
            owner._modules[part].add_module(name, value)
        else:
            owner._modules[part].register_buffer(name, value)
    kind = next(kind for kind in type(module).__mro__ if kind in PLACED)
    restyle(owner, changed=changed | {name: PLACED[kind](module, owner, name)})


def _remove_parts(owner, name, projection):
    for part in present(projection):
        home = owner._modules[part]
        delattr(home, name)
        if not home._modules and not home._buffers:
            del owner._modules[part]


def projections(root):
    """Every changed projection below a module, by path."""
    return {
        f"{path}.{name}".removeprefix("."): projection
        for path, owner in root.named_modules()
        for name, projection in changed_in(owner).items()
    }


class SplitLinear(nn.Module):
    """A fused projection as separate ones: the outputs of its parts, side by side.

    With `groups` above 1, the fused outputs are those of all parts for the first group, then for
    the next one (GPT-NeoX, BLOOM and Falcon: query, key and value head by head).
    """

    def __init__(self, fused, parts, groups):
        super().__init__()
        self.sizes, self.groups = dict(parts), groups
        rows = self._apart(fused.weight)
        biases = [None] * len(rows) if fused.bias is None else self._apart(fused.bias)
        grad = fused.weight.requires_grad
        for (name, size), weight, bias in zip(parts, rows, biases):
            part = reshape_linear(fused, out_features=size)
            part.weight = nn.Parameter(weight.clone(), requires_grad=grad)
            if bias is not None:
                part.bias = nn.Parameter(bias.clone(), requires_grad=grad)
            self.add_module(name, part)

    def _apart(self, rows):
        by_group = rows.view(self.groups, -1, *rows.shape[1:])
        sizes = [size // self.groups for size in self.sizes.values()]
        return [part.flatten(0, 1) for part in by_group.split(sizes, dim=1)]

    def forward(self, x):
        outputs = [getattr(self, name)(x) for name in self.sizes]
        if self.groups > 1:
            outputs = [y.unflatten(-1, (self.groups, -1)) for y in outputs]
            return torch.cat(outputs, dim=-1).flatten(-2)
        return torch.cat(outputs, dim=-1)

    def side_by_side(self, tensors):
        """Rows of the fused layer from those of its parts."""
        split = [t.unflatten(0, (self.groups, -1)) for t in tensors]
        return torch.cat(split, dim=1).flatten(0, 1)

    def join(self):
        """The fused layer again; every part is a linear layer."""
        parts = [getattr(self, name) for name in self.sizes]
        fused = reshape_linear(parts[0], out_features=sum(part.out_features for part in parts))
        weight = self.side_by_side([part.weight for part in parts])
        fused.weight = nn.Parameter(weight, requires_grad=False)
        if fused.bias is not None:
            bias = self.side_by_side([part.bias for part in parts])
            fused.bias = nn.Parameter(bias, requires_grad=False)
        return fused


def linear_of(layer):
    """A linear layer with the weights of a transposed one (GPT-2); any other as it is."""
    if not isinstance(layer, Conv1D):
        return layer
    inner, outer = layer.weight.shape
    factory = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    linear = nn.Linear(inner, outer, **factory)
    linear.weight = nn.Parameter(layer.weight.mT.contiguous(), layer.weight.requires_grad)
    linear.bias = layer.bias
    return linear


def split_layer(layer, fused):
    """Give every projection of a decoder layer a matrix of its own, in place."""
    for path, module in list(layer.named_modules()):
        if isinstance(module, Conv1D):
            place(layer, path, linear_of(module))
    for path, form in fused.items():
        module = layer.get_submodule(path)
        if not isinstance(module, SplitLinear):
            place(layer, path, SplitLinear(module, form["parts"], form["groups"]))


def _width(config):
    """Intermediate features of the model's MLP."""
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        if getattr(config, name, None):
            return getattr(config, name)
    return 4 * config.hidden_size


class FeedForward(nn.Module):
    """W2 relu(W1 x + b1) + b2 with 4 H intermediate features."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.down = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class GatedFeedForward(nn.Module):
    """W_down (act(W_gate x) * (W_up x)) at the model's intermediate size, without biases.

    The activation is the model's own, silu for most; models that name none for a gate get silu.
    """

    def __init__(self, config):
        super().__init__()
        hidden, inner = config.hidden_size, _width(config)
        own = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
        self.activation = ACT2FN[own or "silu"]
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


class LinearMap(nn.Module):
    """W x, from closed-form least squares."""

    def __init__(self, config):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down(x)


REPLACEMENTS = {"ffn": FeedForward, "swiglu": GatedFeedForward, "linear": LinearMap}


class ReplacedLayer(nn.Module):
    """Stands in the list of decoder layers and maps hidden states only.

    It is not among the layers whose outputs `output_hidden_states=True` collects.
    """

    returns_tuple = False

    def __init__(self, config, kind, residual, layer_idx):
        super().__init__()
        self.residual, self.layer_idx = residual, layer_idx
        self.replacement = REPLACEMENTS[kind](config)

    def forward(self, hidden_states, *args, past_key_values=None, layer_past=None, **kwargs):
        cache = past_key_values if layer_past is None else layer_past
        if cache is not None:
            # caches read the sequence length off the first layer of each kind, whichever it is
            mark = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(mark, mark, self.layer_idx)
        mapped = self.replacement(hidden_states)
        mapped = hidden_states + mapped if self.residual else mapped
        return (mapped, None) if self.returns_tuple else mapped


class Shortcut:
    """Mixin of a decoder layer: both additions map the residual by a matrix of their own first.

    The layer adds what attention and MLP make of the normed stream, one after the other.
    """

    def forward(self, hidden_states, *args, **kwargs):
        layout = self._traits["layout"]
        attend = self.get_submodule(layout["attention"])
        before, between = (self.get_submodule(path) for path in layout["norms"])
        known = inspect.signature(type(attend).forward).parameters
        if not any(p.kind == p.VAR_KEYWORD for p in known.values()):
            kwargs = {name: value for name, value in kwargs.items() if name in known}
        added = attend(before(hidden_states), *args, **kwargs)
        added = added[0] if isinstance(added, tuple) else added
        hidden_states = self.shortcut_attention(hidden_states) + added
        normed = between(hidden_states)
        if layout["mlp"]:
            added = self.get_submodule(layout["mlp"])(normed)
        else:
            up, down = (self.get_submodule(layout["matrices"][name]) for name in ("up", "down"))
            added = down(self.activation_fn(up(normed)))
        hidden_states = self.shortcut_mlp(hidden_states) + added
        return (hidden_states, None) if layout["returns_tuple"] else hidden_states


def add_shortcuts(layer, layout):
    """Uninitialised maps of the residual, as `shortcut_attention` and `shortcut_mlp` of a layer."""
    some = next(layer.parameters())
    factory = {"dtype": some.dtype, "device": some.device}
    size = layer.get_submodule(layout["norms"][0]).weight.numel()
    for name in ("shortcut_attention", "shortcut_mlp"):
        layer.add_module(name, nn.Linear(size, size, bias=False, **factory))
    restyle(layer, layout=layout)


class Branch:
    """Mixin of an MLP: the output of `branch`, a low-rank map of its input, is added to its own."""

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs) + self.branch(hidden_states)


def add_branch(mlp, hidden_size, rank):
    """An uninitialised low-rank map parallel to an MLP, as its `branch`."""
    some = next(mlp.parameters())
    factory = {"dtype": some.dtype, "device": some.device}
    mlp.add_module("branch", LowRankLinear(hidden_size, hidden_size, rank, False, **factory))
    restyle(mlp, branch=True)


class CompressedModel:
    """Mixin in front of a stock class: builds it, then applies what the configuration lists.

    Everything that changes lies in the base model, so every head stands on a compressed one.
    """

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        base = self.base_model
        if base is not self and isinstance(base, CompressedModel):
            return
        _check_names(self, base, config.layout)
        if base is not self:
            base.__class__ = compressed_class(type(base))
        with torch.no_grad():
            _rewrite(base, config)


def _inside(base, path):
    """The path below the base model for one below the model that holds it."""
    return path if hasattr(base, path.partition(".")[0]) else path.partition(".")[2]


def _check_names(model, base, layout):
    """Other versions of transformers may call parts by other names: never load half a model."""
    owners = [(p, p.rpartition(".")[0]) for p in layout["matrices"].values()]
    inside = [owner if owner in layout["fused"] else path for path, owner in owners]
    wanted = [f"{layout['layers']}.0.{path}" for path in inside]
    missing = [path for path in wanted if not _has(base, _inside(base, path))]
    if model.get_output_embeddings() is not None and not _has(model, layout["head"]):
        missing.append(layout["head"])
    if layout["experts"]:
        path = f"{layout['layers']}.0.{layout['experts']}"
        if not _has(base, _inside(base, path)) or isinstance(
            base.get_submodule(_inside(base, path)), nn.ModuleList
        ):
            missing.append(f"{path} of one tensor")
    if missing:
        raise ImportError(
            f"this compressed model needs transformers 5 or newer: in version "
            f"{transformers.__version__}, {type(base).__name__} has no {', '.join(missing)}"
        )


def _has(root, path):
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def _rewrite(base, config):
    layout = config.layout
    layers = base.get_submodule(_inside(base, layout["layers"]))
    for position, settings in (config.replaced_layers or {}).items():
        index = int(position)
        replaced = ReplacedLayer(config, layer_idx=index, **settings)
        replaced.returns_tuple = layout["returns_tuple"]
        layers[index] = replaced.to(base.dtype)
    for layer in layers:
        if not isinstance(layer, ReplacedLayer):
            split_layer(layer, layout["fused"])
    for path, form in (config.compressed_modules or {}).items():
        inside = _inside(base, path)
        place(base, inside, reshape_linear(base.get_submodule(inside), **form))
    for position, rank in (config.branches or {}).items():
        mlp = layers[int(position)].get_submodule(layout["mlp"])
        add_branch(mlp, config.hidden_size, rank)
    for layer in layers:
        if config.shortcuts and not isinstance(layer, ReplacedLayer):
            add_shortcuts(layer, layout)
    kinds = {type(layer).__name__ for layer in layers}
    base._no_split_modules = sorted({*(base._no_split_modules or ()), *kinds})


class CompressedSettings:
    """Mixin of a configuration: what a compressed one has beside the stock one's settings."""

    compressed_modules = None
    replaced_layers = None
    original_layers = None
    shortcuts = False
    branches = None
    layout = None

    def __init__(self, **settings):
        super().__init__(**(old_rope(settings) if transformers.__version__ < "5" else settings))

    @property
    def base_model_tp_plan(self):
        """Which linear layers are split over processes, and how."""
        plan = self.stock_class.base_model_tp_plan
        return (
            None if plan is None or self.layout is None else tensor_parallel_plan(plan, self.layout)
        )

    def to_dict(self):
        peft = sys.modules.get("peft.utils.constants")
        if peft is not None and self.layout is not None:  # peft asks here for the model's type
            names = {path.rpartition(".")[2] for path in self.layout["matrices"].values()}
            mapping = peft.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            mapping.setdefault(self.model_type, sorted(names))
        return super().to_dict()


def old_rope(settings):
    """A configuration's settings with rotary positions said as transformers 4 says them, too."""
    rope = settings.get("rope_parameters")
    if not rope:
        return settings
    said = {}
    if "full_attention" in rope:
        said["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    said["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        said["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if "gpt_neox" in settings.get("model_type", ""):
        said["rotary_emb_base"] = rope["rope_theta"]
        said["rotary_pct"] = rope["partial_rotary_factor"]
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        said["rope_scaling"] = {"type": kind}
        said["rope_scaling"] |= {name: rope[name] for name in ("short_factor", "long_factor")}
    elif kind != "default":
        apart = ("rope_theta", "partial_rotary_factor")
        said["rope_scaling"] = {k: v for k, v in rope.items() if k not in apart}
    return settings | said


AUTO = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
)


def stock_models(config_class):
    """Auto class -> stock model class of a stock configuration."""
    found = {}
    for name in AUTO:
        mapping = getattr(transformers, name)._model_mapping
        if config_class in mapping:
            found[name] = mapping[config_class]
    return found


def tensor_parallel_plan(stock, layout):
    """The stock plan, and for factors: the left one as its outputs are, the right as its inputs.

    Parts of a fused projection are split when their outputs are gathered; modules whose fused
    projection is to stay apart (GPT-NeoX) stay whole.
    """
    plan, whole = {}, set()
    for path, style in (stock or {}).items():
        owner, _, name = path.rpartition(".")
        fused = layout["fused"].get(path.partition(".*.")[2])
        if fused is None:
            side = "left" if style.startswith("colwise") else "right"
            plan |= {path: style, f"{owner}.{side}.{name}": style}
        elif "gather" not in style:
            whole.add(owner)
        else:
            for part, _ in fused["parts"]:
                plan |= {f"{path}.{part}": style, f"{path}.left.{part}": style}
    inside = tuple(f"{owner}." for owner in whole)
    return {path: style for path, style in plan.items() if not path.startswith(inside)}


def compressed_class(stock):
    """The compressed class of a stock configuration or model class."""
    name = f"Compressed{stock.__name__}"
    if name in globals():
        return globals()[name]
    body = {"__module__": __name__, "__doc__": f"{stock.__name__} with compressed layers."}
    if not issubclass(stock, transformers.PreTrainedModel):
        kind = f"compressed_{stock.model_type}"
        body |= {"model_type": kind, "stock_class": stock}
        globals()[name] = made = type(name, (CompressedSettings, stock), body)
        made.register_for_auto_class()
        _register(made)
        return made
    body["config_class"] = compressed_class(stock.config_class)
    globals()[name] = made = type(name, (CompressedModel, stock), body)
    for auto, model in stock_models(stock.config_class).items():
        if model is stock:
            made.register_for_auto_class(auto)
    return made


def _register(made):
    """Teach transformers' Auto classes a compressed configuration and its models."""
    AutoConfig.register(made.model_type, made, exist_ok=True)
    for auto, model in stock_models(made.stock_class).items():
        getattr(transformers, auto).register(made, compressed_class(model), exist_ok=True)


def __getattr__(name):
    stock = None
    if name.startswith("Compressed"):
        stock = getattr(transformers, name.removeprefix("Compressed"), None)
    if not isinstance(stock, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return compressed_class(stock)
