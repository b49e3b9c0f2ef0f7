"""Parameter groups, with mistakes."""

def groups(name, decays, params=lambda model: [(n, p) for n, p in model.named_parameters() if p.requires_grad], rest=0., own=None):
    "A `params_for_decay` that is right but for what is given."
    def part(model, weight_decay=0.01):
        found = params(model)
        return [{"params": [p for n, p in found if decays(n, p)], "weight_decay": weight_decay if own is None else own},
                {"params": [p for n, p in found if not decays(n, p)], "weight_decay": rest}]
    part.__name__ = name
    return part


FAULTY = {"params_for_decay": [
    groups("all_decay", lambda n, p: True), groups("none_decays", lambda n, p: False), groups("the_other_way_round", lambda n, p: p.ndim < 2),
    groups("by_the_name_weight", lambda n, p: "weight" in n), groups("biases_alone_are_spared", lambda n, p: "bias" not in n),
    groups("frozen_ones_too", lambda n, p: p.ndim > 1, params=lambda model: list(model.named_parameters())),
    groups("first_layer_only", lambda n, p: p.ndim > 1, params=lambda model: list(model.named_parameters())[:2]),
    groups("fixed_decay", lambda n, p: p.ndim > 1, own=.01), groups("rest_decays_a_little", lambda n, p: p.ndim > 1, rest=.01),
    groups("three_dimensions_wanted", lambda n, p: p.ndim > 2),
]}
