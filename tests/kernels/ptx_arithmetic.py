"""What the instructions of PTX compute that take numbers and give one, as `ptx` runs them."""

import functools

import numpy as np

TYPES = {"pred": np.dtype(bool), "f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8")}
TYPES |= {f"{kind}{8 * n}": np.dtype(f"{'i' if kind == 's' else 'u'}{n}") for kind in "bus" for n in (1, 2, 4, 8)}
TYPES |= {"bf16": TYPES["b16"], "bf16x2": TYPES["b32"], "f16x2": TYPES["b32"], "f32x2": TYPES["b64"]}
FLOATS = ("f16", "bf16", "f32", "f64")
TINY = np.finfo(np.float32).smallest_normal

COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.bitwise_not}
INTEGERS = {"add": np.add, "sub": np.subtract, "neg": np.negative, "abs": np.abs, "min": np.minimum, "max": np.maximum}
REALS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
    "min": np.fmin, "max": np.fmax, "min.NaN": np.minimum, "max.NaN": np.maximum, "ex2": np.exp2, "lg2": np.log2,
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x,
}  # fmt: skip


def result(each, get):
    """Of an instruction; get(operand, type) gives an operand's numbers."""
    operands, kind, op = each.operands[1:], each.types[-1], each.op
    if op == "cvt":
        return _converted(each, [get(o, kind) for o in operands])
    if op == "selp":
        return np.where(get(operands[2], "pred"), get(operands[0], kind), get(operands[1], kind))
    if op in LOGIC:
        return LOGIC[op](*(get(o, kind) for o in operands))
    if kind == "f32x2":
        halves = [np.ascontiguousarray(get(o, kind)).view("f4").reshape(-1, 2).T for o in operands]
        pairs = [_real(each, "f32", [_values(x, "f32", each) for x in half]) for half in zip(*halves, strict=True)]
        return np.stack(pairs, -1).view(TYPES[kind])[..., 0]
    if kind in FLOATS:
        kinds = [kind] * len(operands)
        if each.types[1:]:  # on sm_100 what is added is wider than the rest
            kinds[-1] = kind = each.types[0]
        return _real(each, kind, [_values(get(o, k), k, each) for o, k in zip(operands, kinds, strict=True)])
    if op in ("mul", "mad"):
        return _product(each, kind, operands, get)
    if op in INTEGERS:
        return INTEGERS[op](*(get(o, kind) for o in operands))
    return _bits(each, kind, operands, get)


def compared(each, kind, x, y):
    """For setp: "lt" is false of a NaN, "ltu" true."""
    name = each.modifiers[0]
    if kind not in FLOATS:
        return COMPARISONS[name](x, y)
    x, y = _values(x, kind, each), _values(y, kind, each)
    unordered = np.isnan(x) | np.isnan(y)
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    return np.where(unordered, len(name) == 3, COMPARISONS[name[:2]](x, y))


def _values(x, kind, each):
    """As float64, which holds every one of float32: those of any sum, product, quotient or root round to float32's."""
    if kind == "bf16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return _flushed(each, kind, x.astype(np.float64))


def _flushed(each, kind, x):
    return np.where(np.abs(x) < TINY, np.copysign(0, x), x) if "ftz" in each.modifiers and kind == "f32" else x


def _rounded(x, kind):
    if kind != "bf16":
        return x.astype(TYPES[kind])
    bits = x.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FFF, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _real(each, kind, a):
    if each.op == "fma":
        exact = a[0] * a[1] + a[2] if kind != "f64" else _fused(*a)
    elif kind == "f64" and "approx" in each.modifiers and "ftz" in each.modifiers:  # high halves alone
        return _high(REALS[each.op](_high(a[0])))
    else:
        function = REALS[each.op + ".NaN" * ("NaN" in each.modifiers)]
        if "xorsign" in each.modifiers:  # of a clamp between -x and x: the lesser size, with the sign of the product
            function = functools.partial(_signed, function)
        exact = functools.reduce(function, a) if a[1:] else function(*a)  # of three numbers on sm_100
    return _rounded(_flushed(each, kind, exact), kind)


def _signed(function, x, y):
    return np.copysign(function(np.abs(x), np.abs(y)), np.copysign(1, x) * np.copysign(1, y))


def _high(x):
    return (x.view(np.uint64) >> 32 << 32).view(np.float64)


def _fused(x, y, z):
    """x y + z with the product's rounding error put back (Dekker 1971)."""
    product = x * y
    (high, low), (top, rest) = _halves(x), _halves(y)
    error = ((high * top - product) + high * rest + low * top) + low * rest
    total = product + z
    back = total - product
    fused = total + (error + ((product - (total - back)) + (z - back)))
    return np.where(np.isfinite(fused), fused, total)


def _halves(x):
    high = x * 134217729.0
    high = high - (high - x)
    return high, x - high


def _product(each, kind, operands, get):
    x, y = (get(o, kind) for o in operands[:2])
    bits = 8 * x.dtype.itemsize
    if "lo" in each.modifiers:
        product = x * y
    else:
        wide = TYPES.get(f"{kind[0]}{2 * bits}", np.dtype(object))
        product = x.astype(wide) * y.astype(wide)
    if "hi" in each.modifiers:
        product = (product >> bits).astype(x.dtype)
    if each.op == "mul":
        return product
    return product + get(operands[2], f"{kind[0]}{8 * product.dtype.itemsize}")


def _bits(each, kind, operands, get):
    x, bits = get(operands[0], kind), 8 * TYPES[kind].itemsize
    if each.op in ("div", "rem"):
        divisor = get(operands[1], kind)
        divisor = np.where(divisor == 0, 1, divisor).astype(x.dtype)  # in threads that do not use it
        rest = np.fmod(x, divisor)
        return rest if each.op == "rem" else (x - rest) // divisor
    if each.op in ("shl", "shr"):
        by = get(operands[1], "u32")
        shifted = (np.left_shift if each.op == "shl" else np.right_shift)(x, np.minimum(by, bits - 1).astype(x.dtype))
        return shifted if kind[0] == "s" else np.where(by < bits, shifted, 0).astype(x.dtype)
    if each.op == "bfe":
        first, length = (get(o, "u32") for o in operands[1:])
        return x << (bits - first - length).astype(x.dtype) >> (bits - length).astype(x.dtype)
    if each.op == "prmt":
        both = np.stack(np.broadcast_arrays(x, get(operands[1], kind)), -1).view(np.int8)
        chosen = [operands[2] >> 4 * k & 15 for k in range(4)]
        selected = np.stack([both[..., k & 7] >> (7 if k & 8 else 0) for k in chosen], -1)  # 8: its sign, in all bits
        return np.ascontiguousarray(selected).view(np.uint32)[..., 0]
    raise NotImplementedError(each.text)


def _converted(each, operands):
    to, source = each.types
    if to in ("bf16x2", "f16x2"):  # the first is the high half
        high, low = (_rounded(x, to[:-2]).view(np.uint16).astype(np.uint32) for x in operands)
        return high << 16 | low
    (x,) = operands
    if source not in FLOATS and to != "bf16":
        return x.astype(TYPES[to])
    if to not in FLOATS or "rni" in each.modifiers or source not in FLOATS:
        raise NotImplementedError(each.text)
    return _rounded(_flushed(each, to, _values(x, source, each)), to)
