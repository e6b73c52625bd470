"""How to expand a window of a compact export by hand: a few lines of plain torch."""

from exporters.manifest import Manifest
from exporters.tablefile import TABLES
from exporters.windows import STARTS
from kernels.squares import LANES


def recipe(manifest: Manifest) -> tuple[str, ...]:
    """Lines of Python that compute q, k and v of window i, run in the folder of the export.

    q is [H, T, Dh], k and v are [Hk, T, Dh], whatever the layout of the export. On a CPU their
    bits are those of `qkvmill expand`, except in rows where E[t] and P[p] cancel before a norm.
    """
    layer = manifest.layer
    assert layer is not None
    length, stride = manifest.windows["context_length"], manifest.windows["stride"]
    heads, kv_heads, head_dim = layer["heads"], layer["kv_heads"], layer["head_dim"]
    stream = 'torch.cat([load_file(part)["input_ids"] for part in sorted(glob.glob("tokens/*"))])'
    added = layer["positions"] in ("sinusoidal", "learned")
    position = ' + t["position_table"]' if added else ""
    listed = f' | load_file("{STARTS}")' if manifest.lists_starts else ""
    start = 't["window_start"][i]' if manifest.lists_starts else f"i * {stride}"
    lines = [
        "import glob, torch",
        "from safetensors.torch import load_file",
        f'i, t = 0, load_file("{TABLES}"){listed}',
    ]
    if manifest.padded:
        # The last token of the stream is a target only.
        lines.append(f"ids = {stream}[:-1][{start} :]")
        real = 't["window_pairs"][i]' if manifest.split else length
        filled = f"torch.full(({length},), {manifest.padding}, dtype=torch.int32)"
        lines.append(f"ids = torch.cat([ids[:{real}], {filled}])[:{length}]")
    else:
        lines += [f"start = {start}", f"ids = {stream}[start : start + {length}]"]
    if layer["positions"] == "rope":
        pairs = layer["rotary_dims"] // 2
        first, second = f":{pairs}", f"{pairs} : {2 * pairs}"
        if layer["rotary_interleaved"]:
            first, second = f"0 : {2 * pairs} : 2", f"1 : {2 * pairs} : 2"
        turned = f"out[:{heads + kv_heads}, :"
        lines += [
            'out = t["token_table"][:, torch.searchsorted(t["token_ids"], ids)]',
            f"a, b = {turned}, {first}], {turned}, {second}]",
            'c, s = t["rotary_cos"], t["rotary_sin"]',
            "a[:], b[:] = a * c - b * s, b * c + a * s",
        ]
    elif added and layer["norm"] != "none":
        d, mean = layer["d_model"], ""
        if layer["norm"] == "layernorm":
            mean = ' - (t["token_means"][row] + t["position_means"])[:, None]'
        squares = "(x.double() ** 2)"
        if d % LANES:
            lines[0] += ", torch.nn.functional as F"
            squares = f"F.pad(x.double() ** 2, (0, {-d % LANES}))"
        sums = f"{squares}.view(-1, {-(-d // LANES)}, {LANES}).cumsum(1)[:, -1].cumsum(1)[:, -1:]"
        constant = f't["constant"].view(-1, 1, {head_dim})'
        lines += [
            'row = torch.searchsorted(t["token_ids"], ids)',
            f'x = t["token_features"][row] + t["position_features"]{mean}',
            f"r = ({sums} / {d} + {layer['eps']}).rsqrt().float()",
            f'out = (t["token_table"][:, row]{position}) * r + {constant}',
        ]
    else:
        lines += [
            'row = torch.searchsorted(t["token_ids"], ids)',
            f'out = t["token_table"][:, row]{position}',
        ]
    split = f"split([{heads}, {kv_heads}, {kv_heads}])"
    lines.append(f"q, k, v = out.to(torch.{layer['dtype']}).{split}")
    return tuple(lines)
