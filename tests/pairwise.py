"""Test cases in which every pair of values of two parameters meets once, instead of every combination of all."""

from itertools import combinations


def pairwise(parameters):
    """parameters: {name: values}. A list of {name: value} in which every two values of two parameters occur together.

    Greedy: each case starts from a pair not yet met and takes, parameter by parameter, the value with most new pairs.
    """
    names = list(parameters)
    open_pairs = {
        frozenset(((a, i), (b, j)))
        for a, b in combinations(names, 2)
        for i in range(len(parameters[a]))
        for j in range(len(parameters[b]))
    }
    cases = []
    while open_pairs:
        chosen = dict(min(open_pairs, key=sorted))
        for name in names:
            if name not in chosen:
                gains = [
                    sum(frozenset(((name, i), other)) in open_pairs for other in chosen.items())
                    for i in range(len(parameters[name]))
                ]
                # among equals the one after the last used, so that values spread
                chosen[name] = max(range(len(gains)), key=lambda i: (gains[i], (i - len(cases)) % len(gains)))
        open_pairs -= {frozenset(pair) for pair in combinations(chosen.items(), 2)}
        cases.append({name: parameters[name][chosen[name]] for name in names})
    return cases


def name_of(case):
    """The name of a test of this case."""
    return "-".join(str(value).replace("torch.", "").replace(" ", "") for value in case.values())
