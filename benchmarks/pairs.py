"""Few combinations of options in which every two options meet in every two of their values."""

import itertools


def covering(options, allowed=lambda chosen: True) -> list[dict]:
    """Combinations in which each pair of values of two options occurs, where it is allowed at all.

    options: name -> its values. allowed: whether a part of a combination, {name: value}, may be. The same list each
    time: each combination is begun with a pair that has not occurred, and takes on the values that meet the most new
    ones (as AETG: Cohen et al. 1997, The AETG System).
    """
    names = list(options)
    missing = dict.fromkeys(
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(options[a], options[b])
        if allowed({a: x, b: y})
    )
    found = []
    while missing:
        first = next(iter(missing))
        chosen = _completed(dict(first), options, allowed, missing)
        missing.pop(first)
        if chosen is None:
            continue
        ordered = {name: chosen[name] for name in names}
        for pair in itertools.combinations(ordered.items(), 2):
            missing.pop(pair, None)
        found.append(ordered)
    return found


def _completed(chosen, options, allowed, missing):
    """The combination with a value for each option; None where there is none that is allowed."""
    rest = [name for name in options if name not in chosen]
    if not rest:
        return chosen
    order = {name: k for k, name in enumerate(options)}

    def met(item):
        pairs = (tuple(sorted((item, other), key=lambda named: order[named[0]])) for other in chosen.items())
        return sum(pair in missing for pair in pairs)

    name = rest[0]
    for item in sorted(((name, value) for value in options[name]), key=met, reverse=True):
        more = {**chosen, name: item[1]}
        if allowed(more) and (complete := _completed(more, options, allowed, missing)):
            return complete
    return None
