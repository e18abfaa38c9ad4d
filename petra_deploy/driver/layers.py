"""Two profiles, layer by layer: what changed, by how much, and what is known of why. Pure functions.

    for change in changes(base, new): ...           # every layer, the one that takes longest first
    slower(base, new)[0].sentence                   # "layer1.0.conv1: QLinearConv 41 us -> Conv 88 us, ..."
    stayed_float(new)                               # a sentence for each layer that an INT8 engine computes in float

A difference is paired: both engines ran in each round. All layers of a comparison share the 5%, so of a hundred
equal layers none is called slower by chance but one time in twenty.
"""

from collections.abc import Iterable, Sequence

from petra_deploy.core import stats
from petra_deploy.core.operators import FLOAT, INTEGER, Change, Operator, OpsProfile, Side
from petra_deploy.core.outcome import Figure

_NORMS = ("Norm", "MVN")  # operators that no runtime computes in integers
_SHOWN = 3  # names of layers that were fused
STAYED = "stayed float"
NOTHING = "(outside of every layer)"


def changes(base: OpsProfile | None, new: OpsProfile) -> tuple[Change, ...]:
    """Every layer of either, the longest time of both first. Without a base the differences have no value."""
    groups = grouped([new] if base is None else [new, base])
    found = []
    for members in groups:
        before, after = (None if p is None else _operators(p, members) for p in (base, new))
        if before or after:
            found.append(_change(_name(members), before, after, base, new, len(groups), members))
    return tuple(sorted(found, key=lambda change: -_longest(change)))


def slower(base: OpsProfile, new: OpsProfile) -> tuple[Change, ...]:
    """The layers whose time is longer by its interval; the one that lost most first."""
    found = [change for change in changes(base, new) if change.slower]
    return tuple(sorted(found, key=lambda change: -change.difference.known()))


def stayed_float(profile: OpsProfile) -> tuple[str, ...]:
    """Of an engine that computes in integers; layers that no runtime computes so are left out."""
    told = []
    for change in changes(None, profile):
        if change.new and change.why.startswith(STAYED):
            told.append(f"{change.layer} ({_told(change.new)}): {change.why.removeprefix(f'{STAYED}: ')}")
    return tuple(told)


def grouped(profiles: Sequence[OpsProfile]) -> list[tuple[str, ...]]:
    """The layers that are compared as one, in the first profile's order; most stand alone."""
    known = [_names(profile) for profile in profiles]
    groups: dict[str, tuple[str, ...]] = {name: (name,) for names in known for name in names}
    joined = [o.layers for profile in profiles for o in profile.operators if len(o.layers) > 1]
    for one, names in enumerate(known):
        for other in known[:one] + known[one + 1 :]:
            joined += [(above, name) for name in names if name not in other and (above := _above(name, other))]
    order = list(groups)
    for layers in joined:
        members = {name for layer in layers for name in groups[layer]}
        union = tuple(name for name in order if name in members)
        groups |= dict.fromkeys(union, union)
    return list(dict.fromkeys(groups.values()))


def _names(profile: OpsProfile) -> list[str]:
    """Layers with weights, then what else operators were put to; what was put nowhere has a name of its own."""
    others = (name for o in profile.operators for name in (o.layers or (NOTHING,)))
    return list(dict.fromkeys([*profile.layers, *others]))


def _above(name: str, others: Iterable[str]) -> str:
    """The nearest module among `others` that this one is a part of; empty where there is none."""
    return max((other for other in others if name.startswith(f"{other}.")), key=len, default="")


def _operators(profile: OpsProfile, members: Sequence[str]) -> list[Operator]:
    return [o for o in profile.operators if (o.layers or (NOTHING,))[0] in members]


def _change(
    layer: str, before: list[Operator] | None, after: list[Operator] | None, base: OpsProfile | None,
    new: OpsProfile, layers: int, members: Sequence[str],
) -> Change:  # fmt: skip
    old, now = (_side(operators) if operators else None for operators in (before, after))
    difference = Figure(value=None, unit="us", note="there is no base")
    if base is not None:
        pairs = zip(_rounds(after or [], base), _rounds(before or [], base), strict=True)
        difference = stats.mean([a - b for a, b in pairs], "us", alpha=stats.ALPHA / layers)
    why = _why(old, now, new, members, compared=base is not None)
    return Change(layer=layer, base=old, new=now, difference=difference, why=why,
                  sentence=_sentence(layer, old, now, difference, why))  # fmt: skip


def _side(operators: Sequence[Operator]) -> Side:
    own = [o for o in operators if o.how == "own"] or [o for o in operators if o.how == "follows"] or operators
    main = max(own, key=lambda o: o.time.known())
    conversions = [o for o in operators if o.how == "converts"]
    names = dict.fromkeys(o.operator for o in sorted(own, key=lambda o: -o.time.known()))
    return Side(
        operators=tuple(names), precision=main.precision, time=stats.mean(_rounds(operators), "us"),
        conversions=stats.mean(_rounds(conversions, operators[0]), "us"),
    )  # fmt: skip


def _rounds(operators: Sequence[Operator], like: OpsProfile | Operator | None = None) -> list[float]:
    """The sum over operators, one a round; of none, as many zeros as `like` has rounds."""
    if not operators:
        many = like.whole_us if isinstance(like, OpsProfile) else like.us if like else ()
        return [0.0] * len(many)
    return [sum(times) for times in zip(*(o.us for o in operators), strict=True)]


def _why(old: Side | None, now: Side | None, new: OpsProfile, members: Sequence[str], *, compared: bool) -> str:
    """What the engine's own facts say of a layer; empty where nothing is out of the ordinary."""
    if now is None:
        return "only before"
    if old is None and compared:
        return "only after"
    integers = any(o.precision in INTEGER and o.how == "own" for o in new.operators) or bool(new.quantized)
    weights = set(members) & set(new.layers) and not any(n in o for o in now.operators for n in _NORMS)
    if integers and weights and now.precision in FLOAT:
        if set(members) & set(new.quantized):
            return f"{STAYED}: model.onnx has its weights in integers, and {new.runtime} computes it in float"
        return f"{STAYED}: model.onnx has it so, the strategy left it"
    if old is None or old.precision == now.precision:
        return ""
    return f"{old.precision or '?'} -> {now.precision or '?'}"


def _sentence(layer: str, old: Side | None, now: Side | None, difference: Figure, why: str) -> str:
    text = " -> ".join(_told(side) for side in (old, now) if side is not None)
    if old and now and difference.value is not None:
        text += f", {bounded(difference)}"
        more = now.conversions.known() - old.conversions.known()
        if difference.value > 0 and more > 0.1 * difference.value:
            text += f", of it conversions {more:+.0f} us"
    short = why.partition(":")[0]
    return f"{layer}: {text}{f' ({short})' if short else ''}"


def bounded(figure: Figure) -> str:
    """ "+47 us (+40 to +54)" """
    value = f"{figure.known():+.{_digits(figure.known())}f} us"
    if figure.low is None or figure.high is None:
        return value
    digits = _digits(figure.known())
    return f"{value} ({figure.low:+.{digits}f} to {figure.high:+.{digits}f})"


def _told(side: Side) -> str:
    return f"{' + '.join(side.operators[:2])} {side.time.known():.{_digits(side.time.known())}f} us"


def _digits(us: float) -> int:
    return 0 if abs(us) >= 10 else 1


def _name(members: Sequence[str]) -> str:
    shortest = min(members, key=len)
    if all(name == shortest or name.startswith(f"{shortest}.") for name in members):
        return shortest
    more = len(members) - _SHOWN
    return " + ".join(members[:_SHOWN]) + (f" + {more} more" if more > 0 else "")


def _longest(change: Change) -> float:
    return max(side.time.known() for side in (change.base, change.new) if side is not None)
