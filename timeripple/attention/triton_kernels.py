"""Triton kernels, launched by `triton_backend.py`; written for NVIDIA, compiled for AMD from the same source.

One online-softmax loop, `attend`, serves dense, token and tile reuse. It goes over rows of keys with a bias each:

    dense  every key is a row, without a bias
    token  a row is the mean of up to 8 tokens, its bias log(tokens); a query row is the mean of up to 8 tokens too
    tile   a coarse pass over window means, without those the tile computes, then a fine pass over the keys of these

Rows are given as `order`, the tokens row by row, and `starts`, where in it a row begins and the one before it ends,
both int32. Outputs go straight to the tokens of a row.
Logits are kept in units of log 2, so that exp2 can be used: biases come as log2, the scale as scale * log2(e).
"""

import triton
import triton.language as tl


@triton.jit
def load_tokens(pointer, tokens, columns, stride, HEAD_DIM: tl.constexpr):
    """Rows [len(tokens), len(columns)] of a [tokens, HEAD_DIM] matrix; zeros where a token is -1."""
    inside = (tokens >= 0)[:, None] & (columns < HEAD_DIM)[None, :]
    return tl.load(pointer + tokens.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def head_offset(head, heads, stride_batch, stride_head):
    """Where the head `head` of all batch entries begins."""
    return (head // heads).to(tl.int64) * stride_batch + (head % heads).to(tl.int64) * stride_head


@triton.jit
def multiply(a, b, UPCAST: tl.constexpr):
    """a @ b with float32 sums; UPCAST for the interpreter, whose product of bfloat16 is wrong."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def online_softmax(query, key, value, bias, highest, total, output, scale, UPCAST: tl.constexpr):
    """One step of the loop: query [M, D], key [D, N], value [N, D], bias [M, N] or [1, N]; -inf hides a key."""
    logits = multiply(query, key, UPCAST) * scale + bias
    higher = tl.maximum(highest, tl.max(logits, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(highest - base)
    total = total * shrink + tl.sum(weights, 1)
    output = output * shrink[:, None] + multiply(weights.to(value.dtype), value, UPCAST)
    return higher, total, output


@triton.jit
def row_of(starts, row, used):
    """Where in the order these rows begin, and how many tokens they have: none where not `used`."""
    start = tl.load(starts + row, mask=used, other=0)
    return start, tl.load(starts + row + 1, mask=used, other=0) - start


@triton.jit
def member_of(order, start, size, member):
    """The tokens of rows that are the `member`-th in them, -1 where a row has fewer."""
    return tl.load(order + start + member, mask=member < size, other=-1)


@triton.jit
def mean_of_rows(
    x, order, start, size, column, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Mean of the tokens of every row, float32 [BLOCK, BLOCK_D]; 0 where there are none."""
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for member in range(0, tl.max(size, 0)):
        token = member_of(order, start, size, member)
        total += load_tokens(x, token, column, stride, HEAD_DIM).to(tl.float32)
    return total / tl.maximum(size, 1).to(tl.float32)[:, None]


@triton.jit
def merge_rows(
    x, order, starts, counts, merged, heads, rows, stride_batch, stride_head, stride_token, order_stride, starts_stride,
    HEAD_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """merged[head, row] = mean of the tokens of a row. Grid: (blocks of rows, batch * heads).

    x: [batch, heads, tokens, HEAD_DIM]; order, starts: of every head, `order_stride` and `starts_stride` apart (0: one
    for all); counts: rows in use per head; merged: [batch * heads, rows, HEAD_DIM].
    """
    head = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    used = row < tl.load(counts + head)
    column = tl.arange(0, BLOCK_D)
    x += head_offset(head, heads, stride_batch, stride_head)
    order += head.to(tl.int64) * order_stride
    start, size = row_of(starts + head.to(tl.int64) * starts_stride, row, used)
    mean = mean_of_rows(x, order, start, size, column, stride_token, HEAD_DIM, BLOCK_ROWS, BLOCK_D)
    place = merged + (head.to(tl.int64) * rows + row[:, None]) * HEAD_DIM + column[None, :]
    tl.store(place, mean.to(merged.dtype.element_ty), mask=used[:, None] & (column < HEAD_DIM)[None, :])


@triton.jit
def attend(
    query, key, value, residual, output,
    query_order, query_starts, query_counts, row_key, row_value, row_bias, row_counts,
    chosen, chosen_counts, computed, window_table,
    heads, tokens, query_rows, rows, windows, tile_rows, scale,
    query_stride_batch, query_stride_head, query_stride_token,
    key_stride_batch, key_stride_head, key_stride_token,
    value_stride_batch, value_stride_head, value_stride_token,
    output_stride_batch, output_stride_head, output_stride_token,
    row_stride_batch, row_stride_head, row_stride_token,
    row_value_stride_batch, row_value_stride_head, row_value_stride_token,
    query_order_stride, query_starts_stride,
    HEAD_DIM: tl.constexpr, GATHERED: tl.constexpr, TILED: tl.constexpr, BIASED: tl.constexpr,
    RESIDUAL: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attention of query rows to key rows. Grid: (blocks of query rows, batch * heads).

    query, key, value, residual, output: [batch, heads, tokens, HEAD_DIM]; residual is laid out like output and added
    to it. Without GATHERED every token is a query row; with it query_order and query_starts give those of every head,
    query_counts of which are in use. row_key, row_value: [batch, heads, rows, HEAD_DIM], the key rows of the first
    pass, row_counts of which are in use, with row_bias [batch * heads, rows] where BIASED. TILED: `tile_rows` query
    rows share a choice of windows; the first `windows` key rows are their means and are hidden where computed
    [batch * heads, tiles, windows] is set; a second pass goes over the windows listed in chosen, of that shape too,
    chosen_counts [batch * heads, tiles] of them, whose tokens are in window_table [windows, 8].
    """
    head = tl.program_id(1)
    block = tl.program_id(0)
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    used_rows = tokens
    if GATHERED:
        used_rows = tl.load(query_counts + head)
    if block * BLOCK_M >= used_rows:
        return
    query += head_offset(head, heads, query_stride_batch, query_stride_head)
    key += head_offset(head, heads, key_stride_batch, key_stride_head)
    value += head_offset(head, heads, value_stride_batch, value_stride_head)
    row_key += head_offset(head, heads, row_stride_batch, row_stride_head)
    row_value += head_offset(head, heads, row_value_stride_batch, row_value_stride_head)
    if GATHERED:
        query_order += head.to(tl.int64) * query_order_stride
        begin, size = row_of(query_starts + head.to(tl.int64) * query_starts_stride, row, row < used_rows)
        q = mean_of_rows(query, query_order, begin, size, column, query_stride_token, HEAD_DIM, BLOCK_M, BLOCK_D)
        q = q.to(query.dtype.element_ty)
    else:
        q = load_tokens(query, tl.where(row < tokens, row, -1), column, query_stride_token, HEAD_DIM)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if TILED:
        tile = head.to(tl.int64) * (query_rows // tile_rows) + block * BLOCK_M // tile_rows
        computed += tile * windows

    row_count = tl.load(row_counts + head)
    for start in range(0, row_count, BLOCK_N):
        index = start + tl.arange(0, BLOCK_N)
        token = tl.where(index < row_count, index, -1)
        k = load_tokens(row_key, token, column, row_stride_token, HEAD_DIM)
        v = load_tokens(row_value, token, column, row_value_stride_token, HEAD_DIM)
        bias = tl.where(token >= 0, 0.0, float("-inf"))
        if BIASED:
            bias += tl.load(row_bias + head.to(tl.int64) * rows + index, mask=token >= 0, other=0.0)
        if TILED:
            fine = tl.load(computed + index, mask=index < windows, other=0)
            bias = tl.where(fine != 0, float("-inf"), bias)
        highest, total, result = online_softmax(q, tl.trans(k), v, bias[None, :], highest, total, result, scale, UPCAST)

    if TILED:
        chosen += tile * windows
        chosen_count = tl.load(chosen_counts + tile)
        for start in range(0, chosen_count * 8, BLOCK_N):
            index = start + tl.arange(0, BLOCK_N)
            inside = index < chosen_count * 8
            window = tl.load(chosen + index // 8, mask=inside, other=0)
            token = tl.load(window_table + window * 8 + index % 8, mask=inside, other=-1)
            k = load_tokens(key, token, column, key_stride_token, HEAD_DIM)
            v = load_tokens(value, token, column, value_stride_token, HEAD_DIM)
            bias = tl.where(token >= 0, 0.0, float("-inf"))
            highest, total, result = online_softmax(
                q, tl.trans(k), v, bias[None, :], highest, total, result, scale, UPCAST
            )

    result = result / tl.where(total > 0, total, 1.0)[:, None]
    offset = head_offset(head, heads, output_stride_batch, output_stride_head)
    members = 1
    if GATHERED:
        members = tl.max(size, 0)
    for member in range(0, members):
        target = tl.where(row < tokens, row, -1)
        if GATHERED:
            target = member_of(query_order, begin, size, member)
        inside = (target >= 0)[:, None] & (column < HEAD_DIM)[None, :]
        place = offset + target.to(tl.int64)[:, None] * output_stride_token + column[None, :]
        final = result
        if RESIDUAL:
            final += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(output + place, final.to(output.dtype.element_ty), mask=inside)


@triton.jit
def popcount(bits: tl.constexpr):
    return (bits & 1) + ((bits >> 1) & 1) + ((bits >> 2) & 1)


@triton.jit
def merge_deviations(
    x, weight, table, thresholds, subsets, heads, windows, stride_batch, stride_head, stride_token,
    HEAD_DIM: tl.constexpr, AXES: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What every 2 x 2 x 2 window of one side can merge, as `plan.Merges`. Grid: (blocks of windows, batch * heads).

    x: [batch, heads, tokens, HEAD_DIM]; weight: [batch * heads, HEAD_DIM] float32, of the channels; table: [windows, 8]
    tokens by position (bits t, y, x from high to low), empty ones filled with a neighbour. AXES: bits of the axes that
    may merge; LEVELS: their number. thresholds: float32, subsets: int64, [batch * heads, windows, LEVELS].
    """
    head = tl.program_id(1)
    window = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    used = window < windows
    column = tl.arange(0, BLOCK_D)
    x += head_offset(head, heads, stride_batch, stride_head)
    w = tl.load(weight + head.to(tl.int64) * HEAD_DIM + column, mask=column < HEAD_DIM, other=0.0)[None, :]

    energy = tl.zeros([BLOCK_W, 8], tl.float32)  # of the Haar part that changes along the axes of its bits
    part_of = tl.arange(0, 8)[None, :]
    for part in tl.static_range(1, 8):
        amount = tl.zeros([BLOCK_W, BLOCK_D], tl.float32)
        for position in tl.static_range(8):
            token = tl.load(table + window * 8 + position, mask=used, other=-1)
            sign = 1.0 - 2.0 * ((popcount(part & position)) % 2)
            amount += sign * load_tokens(x, token, column, stride_token, HEAD_DIM).to(tl.float32)
        energy = tl.where(part_of == part, (tl.sum(amount * amount * w, 1) / 64)[:, None], energy)

    place = (head.to(tl.int64) * windows + window) * LEVELS
    above = tl.full([BLOCK_W], float("inf"), tl.float32)
    for step in tl.static_range(LEVELS):
        level = LEVELS - step
        smallest = tl.full([BLOCK_W], float("inf"), tl.float32)
        best = tl.zeros([BLOCK_W], tl.int64)
        for subset in tl.static_range(7, 0, -1):
            if (subset & AXES) == subset and popcount(subset) == level:
                squared = tl.sum(tl.where((part_of & subset) != 0, energy, 0.0), 1)
                better = squared < smallest
                smallest = tl.where(better, squared, smallest)
                best = tl.where(better, subset, best)
        above = tl.minimum(above, smallest)
        tl.store(thresholds + place + level - 1, tl.sqrt(above), mask=used)
        tl.store(subsets + place + level - 1, best, mask=used)


@triton.jit
def list_chosen(computed, chosen, chosen_counts, windows, BLOCK_W: tl.constexpr):
    """The numbers of the set windows of every tile, in order. Grid: (batch * heads * tiles,).

    computed: [programs, windows]; chosen: the same shape, int32; chosen_counts: [programs] int32.
    """
    tile = tl.program_id(0).to(tl.int64)
    count = 0
    for start in range(0, windows, BLOCK_W):
        window = start + tl.arange(0, BLOCK_W)
        listed = tl.load(computed + tile * windows + window, mask=window < windows, other=0).to(tl.int32)
        place = count + tl.cumsum(listed, 0) - 1
        tl.store(chosen + tile * windows + place, window, mask=listed != 0)
        count += tl.sum(listed, 0)
    tl.store(chosen_counts + tile, count)
